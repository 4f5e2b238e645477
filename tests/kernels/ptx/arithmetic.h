// Instructions that give one register from up to three, by name.
#pragma once
#include "memory.h"
u64 get(const Cta& c, const Warp& w, int warp, int lane, const Operand& o) {
  switch (o.kind) {
    case Operand::Imm:
      return o.imm;
    case Operand::Tid:
      return warp * 32 + lane;
    case Operand::Cta:
      return c.id;
    case Operand::Label:
      die("label as a value");
    case Operand::Reg:
      switch (o.file) {
        case 'd':
          return w.d[o.index * 32 + lane];
        case 'h':
          return w.h[o.index * 32 + lane];
        case 'p':
          return w.p[o.index * 32 + lane];
        default:
          return w.r[o.index * 32 + lane];
      }
  }
  return 0;
}
void put(Warp& w, int lane, const Operand& o, u64 v) {
  switch (o.file) {
    case 'd':
      w.d[o.index * 32 + lane] = v;
      break;
    case 'h':
      w.h[o.index * 32 + lane] = uint16_t(v);
      break;
    case 'p':
      w.p[o.index * 32 + lane] = v != 0;
      break;
    default:
      w.r[o.index * 32 + lane] = u32(v);
  }
}
bool has(const Ins& i, const char* p) {
  for (auto& x : i.parts)
    if (x == p) return true;
  return false;
}
int width_of(const string& t) { return atoi(t.c_str() + (t[0] == 'b' && t[1] == 'f' ? 2 : 1)) / 8; }

typedef function<u64(u64, u64, u64)> F3;
struct Simple {
  F3 f;
};
map<string, F3> simple;
u64 ff(float x) { return asu(x); }
void table() {
  auto F = [](u64 x) { return asf(u32(x)); };
  for (string s : {"add.rn.f32", "add.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(F(a) + F(b)); };
  for (string s : {"sub.rn.f32", "sub.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(F(a) - F(b)); };
  for (string s : {"mul.rn.f32", "mul.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(F(a) * F(b)); };
  for (string s : {"div.full.f32", "div.rn.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(F(a) / F(b)); };
  simple["fma.rn.f32"] = [F](u64 a, u64 b, u64 c) { return ff(fmaf(F(a), F(b), F(c))); };
  simple["fma.rm.f32"] = [F](u64 a, u64 b, u64 c) {
    double x = double(F(a)) * F(b) + double(F(c));
    float y = float(x);
    if (y > x) y = nextafterf(y, -INFINITY);
    return ff(y);
  };
  simple["neg.f32"] = [F](u64 a, u64, u64) { return ff(-F(a)); };
  simple["abs.f32"] = [F](u64 a, u64, u64) { return ff(fabsf(F(a))); };
  for (string s : {"min.f32", "min.NaN.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(fminf(F(a), F(b))); };
  for (string s : {"max.f32", "max.NaN.f32"})
    simple[s] = [F](u64 a, u64 b, u64) { return ff(fmaxf(F(a), F(b))); };
  for (string s : {"sqrt.approx.f32", "sqrt.rn.f32", "sqrt.approx.ftz.f32"})
    simple[s] = [F](u64 a, u64, u64) { return ff(sqrtf(F(a))); };
  for (string s : {"rsqrt.approx.f32", "rsqrt.approx.ftz.f32"})
    simple[s] = [F](u64 a, u64, u64) { return ff(float(1 / sqrt(double(F(a))))); };
  for (string s : {"ex2.approx.ftz.f32", "ex2.approx.f32"})
    simple[s] = [F](u64 a, u64, u64) { return ff(exp2f(F(a))); };
  simple["cvt.sat.f32.f32"] = [F](u64 a, u64, u64) {
    float x = F(a);
    return ff(x != x ? 0 : fminf(fmaxf(x, 0), 1));
  };
  simple["cvt.rzi.s32.f32"] = [F](u64 a, u64, u64) { return u64(u32(s32(F(a)))); };
  simple["cvt.rn.f32.s32"] = [](u64 a, u64, u64) { return ff(float(s32(a))); };
  simple["cvt.f32.bf16"] = [](u64 a, u64, u64) { return ff(bf(uint16_t(a))); };
  simple["cvt.f32.f16"] = [](u64 a, u64, u64) { return ff(half2f(uint16_t(a))); };
  simple["cvt.rn.bf16.f32"] = [F](u64 a, u64, u64) { return u64(to_bf(F(a))); };
  simple["cvt.rn.bf16x2.f32"] = [F](u64 a, u64 b, u64) {
    return u64(u32(to_bf(F(a))) << 16 | to_bf(F(b)));
  };
  simple["cvt.u64.u32"] = [](u64 a, u64, u64) { return u64(u32(a)); };
  simple["cvt.u32.u64"] = [](u64 a, u64, u64) { return u64(u32(a)); };
  simple["cvt.s64.s32"] = [](u64 a, u64, u64) { return u64(s64(s32(a))); };
  simple["cvta.to.global.u64"] = [](u64 a, u64, u64) { return a; };
  for (string t : {"s32", "u32"}) {
    simple["add." + t] = [](u64 a, u64 b, u64) { return u64(u32(a + b)); };
    simple["sub." + t] = [](u64 a, u64 b, u64) { return u64(u32(a - b)); };
    simple["mul.lo." + t] = [](u64 a, u64 b, u64) { return u64(u32(a) * u32(b)); };
    simple["mad.lo." + t] = [](u64 a, u64 b, u64 c) { return u64(u32(u32(a) * u32(b) + u32(c))); };
  }
  for (string t : {"s64", "u64"}) {
    simple["add." + t] = [](u64 a, u64 b, u64) { return a + b; };
    simple["sub." + t] = [](u64 a, u64 b, u64) { return a - b; };
    simple["mul.lo." + t] = [](u64 a, u64 b, u64) { return a * b; };
    simple["mad.lo." + t] = [](u64 a, u64 b, u64 c) { return a * b + c; };
  }
  simple["cvt.rn.f16.f32"] = [F](u64 a, u64, u64) {
    _Float16 x = _Float16(F(a));
    uint16_t y;
    memcpy(&y, &x, 2);
    return u64(y);
  };
  simple["cvt.rn.f16x2.f32"] = [F](u64 a, u64 b, u64) {
    _Float16 x = _Float16(F(a)), z = _Float16(F(b));
    uint16_t y, q;
    memcpy(&y, &x, 2);
    memcpy(&q, &z, 2);
    return u64(u32(y) << 16 | q);
  };
  simple["neg.s32"] = [](u64 a, u64, u64) { return u64(u32(-s32(a))); };
  simple["cvt.u16.u32"] = [](u64 a, u64, u64) { return u64(uint16_t(a)); };
  simple["cvt.u32.u16"] = simple["cvt.u16.u32"];
  simple["and.b16"] = [](u64 a, u64 b, u64) { return a & b; };
  simple["mul.hi.u32"] = [](u64 a, u64 b, u64) { return u64(u32(a)) * u64(u32(b)) >> 32; };
  simple["mul.hi.s32"] = [](u64 a, u64 b, u64) {
    return u64(u32(s64(s32(a)) * s64(s32(b)) >> 32));
  };
  simple["mul.wide.u32"] = [](u64 a, u64 b, u64) { return u64(u32(a)) * u64(u32(b)); };
  simple["mul.wide.s32"] = [](u64 a, u64 b, u64) { return u64(s64(s32(a)) * s64(s32(b))); };
  simple["mul.wide.u16"] = [](u64 a, u64 b, u64) { return u64(uint16_t(a)) * u64(uint16_t(b)); };
  simple["min.s32"] = [](u64 a, u64 b, u64) { return u64(u32(min(s32(a), s32(b)))); };
  simple["max.s32"] = [](u64 a, u64 b, u64) { return u64(u32(max(s32(a), s32(b)))); };
  for (string t : {"b32", "pred", "b16", "b64"}) {
    simple["and." + t] = [](u64 a, u64 b, u64) { return a & b; };
    simple["or." + t] = [](u64 a, u64 b, u64) { return a | b; };
    simple["xor." + t] = [](u64 a, u64 b, u64) { return a ^ b; };
    simple["not." + t] = [t](u64 a, u64, u64) { return t == "pred" ? u64(!a) : ~a; };
  }
  simple["shl.b32"] = [](u64 a, u64 b, u64) { return u32(b) > 31 ? 0 : u64(u32(a) << u32(b)); };
  simple["shl.b64"] = [](u64 a, u64 b, u64) { return u32(b) > 63 ? 0 : a << u32(b); };
  simple["shr.u32"] = [](u64 a, u64 b, u64) { return u32(b) > 31 ? 0 : u64(u32(a) >> u32(b)); };
  simple["shr.b32"] = simple["shr.u32"];
  simple["shr.s32"] = [](u64 a, u64 b, u64) { return u64(u32(s32(a) >> min(u32(b), 31u))); };
  simple["shr.u64"] = [](u64 a, u64 b, u64) { return u32(b) > 63 ? 0 : a >> u32(b); };
  for (string t : {"b32", "f32", "b64", "b16", "u32", "s32", "u64", "f64"})
    simple["selp." + t] = [](u64 a, u64 b, u64 c) { return c ? a : b; };
  for (string c : {"eq", "ne", "lt", "le", "gt", "ge"})
    for (string t : {"b32", "s32", "u32", "f32", "b64", "s64", "u64", "b16", "s16", "u16"}) {
      simple["setp." + c + "." + t] = [c, t, F](u64 a, u64 b, u64) -> u64 {
        auto cmp = [&](auto x, auto y) -> u64 {
          return c == "eq"   ? x == y
                 : c == "ne" ? x != y
                 : c == "lt" ? x < y
                 : c == "le" ? x <= y
                 : c == "gt" ? x > y
                             : x >= y;
        };
        if (t == "f32") return cmp(F(a), F(b));
        if (t == "s32") return cmp(s32(a), s32(b));
        if (t == "s64") return cmp(s64(a), s64(b));
        if (t == "b64" || t == "u64") return cmp(a, b);
        if (t == "s16") return cmp(int16_t(a), int16_t(b));
        if (t == "b16" || t == "u16") return cmp(uint16_t(a), uint16_t(b));
        return cmp(u32(a), u32(b));
      };
    }
  simple["prmt.b32"] = [](u64 a, u64 b, u64 c) {
    u64 v = u64(u32(a)) | u64(u32(b)) << 32;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
      u32 s = (c >> (4 * i)) & 15;
      uint8_t x = uint8_t(v >> (8 * (s & 7)));
      if (s & 8) x = x & 128 ? 255 : 0;
      out |= u32(x) << (8 * i);
    }
    return u64(out);
  };
}
