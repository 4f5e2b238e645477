// All other instructions, and one step of a warp.
#pragma once
#include "arithmetic.h"
enum Code {
  SIMPLE,
  MOV,
  LD,
  ST,
  CPASYNC,
  CPCOMMIT,
  CPWAIT,
  NOP,
  BAR,
  SHFL,
  LDMATRIX,
  STMATRIX,
  MMA,
  ATOM,
  BRA,
  RET
};
vector<F3> functions;
void classify() {
  for (auto& i : program) {
    const string& o = i.parts[0];
    functions.push_back(nullptr);
    if (simple.count(i.op)) {
      i.code = SIMPLE;
      functions.back() = simple[i.op];
    } else if (o == "mov")
      i.code = MOV;
    else if (o == "ld")
      i.code = LD;
    else if (o == "st")
      i.code = ST;
    else if (o == "cp" && has(i, "commit_group"))
      i.code = CPCOMMIT;
    else if (o == "cp" && (has(i, "wait_group") || has(i, "wait_all")))
      i.code = CPWAIT;
    else if (o == "cp")
      i.code = CPASYNC;
    else if (o == "griddepcontrol")
      i.code = NOP;
    else if (o == "bar" || o == "barrier")
      i.code = BAR;
    else if (o == "shfl")
      i.code = SHFL;
    else if (o == "ldmatrix")
      i.code = LDMATRIX;
    else if (o == "stmatrix")
      i.code = STMATRIX;
    else if (o == "mma")
      i.code = MMA;
    else if (o == "atom")
      i.code = ATOM;
    else if (o == "bra")
      i.code = BRA;
    else if (o == "ret")
      i.code = RET;
    else
      die("unknown instruction " + i.op + " at line " + to_string(i.line));
  }
}
// One instruction of one warp; false when it cannot go on now.
bool step(Cta& c, int wi) {
  Warp& w = c.warps[wi];
  int pc = w.pc;
  const Ins& i = program[pc];
  current = &i;
  executed++;
  w.pc++;
  bool on[32];
  int active = 0;
  for (int l = 0; l < 32; l++) {
    on[l] = i.guard < 0 || (w.p[i.guard * 32 + l] != 0) != i.negated;
    active += on[l];
  }
  auto G = [&](int l, const Operand& o) { return get(c, w, wi, l, o); };
  switch (i.code) {
    case SIMPLE: {
      auto& f = functions[pc];
      size_t n = i.args.size();
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          u64 a = G(l, i.args[1][0]), b = n > 2 ? G(l, i.args[2][0]) : 0,
              d = n > 3 ? G(l, i.args[3][0]) : 0;
          put(w, l, i.args[0][0], f(a, b, d));
        }
      break;
    }
    case MOV:
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          auto &to = i.args[0], &from = i.args[1];
          if (from.size() > 1) {
            int bits = from[0].file == 'h' ? 16 : 32;
            u64 v = 0;
            for (size_t k = 0; k < from.size(); k++) v |= G(l, from[k]) << (bits * k);
            put(w, l, to[0], v);
          } else if (to.size() > 1) {
            int bits = to[0].file == 'h' ? 16 : 32;
            u64 v = G(l, from[0]);
            for (size_t k = 0; k < to.size(); k++)
              put(w, l, to[k], bits == 16 ? uint16_t(v >> (16 * k)) : u32(v >> (32 * k)));
          } else
            put(w, l, to[0], G(l, from[0]));
        }
      break;
    case LD: {
      string space = i.parts[1].substr(0, i.parts[1].find(':'));
      int n = width_of(i.parts.back());
      bool bypass = has(i, "cg") || has(i, "volatile") || has(i, "relaxed") || has(i, "acquire");
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          if (space == "param") {
            int b = buffer_of_param[i.args[1][0].imm];
            put(w, l, i.args[0][0], u64(b + 1) << 36);
            continue;
          }
          u64 a = G(l, i.args[1][0]) + i.args[1][1].imm;
          if (a % (n * i.args[0].size())) die("misaligned load, line " + to_string(i.line));
          for (size_t k = 0; k < i.args[0].size(); k++)
            put(w, l, i.args[0][k],
                space == "shared" ? shared_load(c, a + k * n, n)
                                  : load(c, w, a + k * n, n, bypass));
          if (space != "shared" && !bypass) plain_loads++;
        }
      break;
    }
    case ST: {
      string space = i.parts[1].substr(0, i.parts[1].find(':'));
      int n = width_of(i.parts.back());
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          u64 a = G(l, i.args[0][0]) + i.args[0][1].imm;
          if (a % (n * i.args[1].size())) die("misaligned store, line " + to_string(i.line));
          for (size_t k = 0; k < i.args[1].size(); k++) {
            u64 v = G(l, i.args[1][k]);
            if (space == "shared")
              shared_store(c, a + k * n, v, n);
            else
              store(c, w, a + k * n, v, n);
          }
        }
      break;
    }
    case CPASYNC: {
      bool bypass = has(i, "cg");
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          u64 to = G(l, i.args[0][0]) + i.args[0][1].imm,
              from = G(l, i.args[1][0]) + i.args[1][1].imm;
          int n = i.args[2][0].imm;
          bool ignore = false;
          int read = n;
          if (i.args.size() > 3) {
            auto& o = i.args[3][0];
            if (o.kind == Operand::Reg && o.file == 'p')
              ignore = G(l, o);
            else
              read = G(l, o);
          }
          for (int k = 0; k < n; k++)
            copy_async(c, w, to + k, ignore || k >= read ? 0 : load(c, w, from + k, 1, bypass));
        }
      break;
    }
    case CPCOMMIT:
      end_group(w);
      break;
    case CPWAIT:
      if (has(i, "wait_all")) end_group(w);
      wait_copies(c, w, has(i, "wait_all") ? 0 : i.args[0][0].imm);
      break;
    case NOP:
      break;
    case BAR:
      w.waiting = true;
      break;
    case SHFL: {
      u32 v[32];
      for (int l = 0; l < 32; l++) v[l] = u32(G(l, i.args[1][0]));
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          u32 b = u32(G(l, i.args[2][0]));
          int from = has(i, "bfly")   ? l ^ b
                     : has(i, "idx")  ? int(b)
                     : has(i, "down") ? l + b
                                      : l - int(b);
          put(w, l, i.args[0][0], v[from >= 0 && from < 32 ? from : l]);
        }
      break;
    }
    case LDMATRIX: {
      int m = has(i, "x4") ? 4 : has(i, "x2") ? 2 : 1;
      bool trans = has(i, "trans");
      u64 rows[32];
      for (int l = 0; l < 32; l++) rows[l] = G(l, i.args[1][0]) + i.args[1][1].imm;
      for (int l = 0; l < 32; l++)
        for (int k = 0; k < m; k++) {
          u32 v = 0;
          for (int j = 0; j < 2; j++) {
            int row = trans ? (l % 4) * 2 + j : l / 4, col = trans ? l / 4 : (l % 4) * 2 + j;
            v |= u32(shared_load(c, rows[k * 8 + row] + col * 2, 2)) << (16 * j);
          }
          put(w, l, i.args[0][k], v);
        }
      break;
    }
    case STMATRIX: {
      int m = has(i, "x4") ? 4 : has(i, "x2") ? 2 : 1;
      bool trans = has(i, "trans");
      u64 rows[32];
      for (int l = 0; l < 32; l++) rows[l] = G(l, i.args[0][0]) + i.args[0][1].imm;
      for (int l = 0; l < 32; l++)
        for (int k = 0; k < m; k++) {
          u32 v = u32(G(l, i.args[1][k]));
          for (int j = 0; j < 2; j++) {
            int row = trans ? (l % 4) * 2 + j : l / 4, col = trans ? l / 4 : (l % 4) * 2 + j;
            shared_store(c, rows[k * 8 + row] + col * 2, uint16_t(v >> (16 * j)), 2);
          }
        }
      break;
    }
    case MMA: {
      bool half = i.op.find("f32.f16.f16.f32") != string::npos;
      if (i.op.find("m16n8k16") == string::npos ||
          (!half && i.op.find("f32.bf16.bf16.f32") == string::npos))
        die("mma of another shape: " + i.op);
      float A[16][16], B[16][8], D[16][8];
      auto N = [&](u64 x, int j) {
        uint16_t y = uint16_t(x >> (16 * j));
        return half ? half2f(y) : bf(y);
      };
      for (int l = 0; l < 32; l++) {
        int g = l >> 2, t = l & 3;
        for (int j = 0; j < 2; j++) {
          A[g][t * 2 + j] = N(G(l, i.args[1][0]), j);
          A[g + 8][t * 2 + j] = N(G(l, i.args[1][1]), j);
          A[g][t * 2 + 8 + j] = N(G(l, i.args[1][2]), j);
          A[g + 8][t * 2 + 8 + j] = N(G(l, i.args[1][3]), j);
          B[t * 2 + j][g] = N(G(l, i.args[2][0]), j);
          B[t * 2 + 8 + j][g] = N(G(l, i.args[2][1]), j);
          D[g][t * 2 + j] = asf(u32(G(l, i.args[3][j])));
          D[g + 8][t * 2 + j] = asf(u32(G(l, i.args[3][2 + j])));
        }
      }
      for (int r = 0; r < 16; r++)
        for (int n = 0; n < 8; n++) {
          float s = D[r][n];
          for (int k = 0; k < 16; k++) s += A[r][k] * B[k][n];
          D[r][n] = s;
        }
      for (int l = 0; l < 32; l++) {
        int g = l >> 2, t = l & 3;
        for (int j = 0; j < 2; j++) {
          put(w, l, i.args[0][j], asu(D[g][t * 2 + j]));
          put(w, l, i.args[0][2 + j], asu(D[g + 8][t * 2 + j]));
        }
      }
      break;
    }
    case ATOM: {
      if (!has(i, "add") || !(has(i, "u32") || has(i, "s32")))
        die("atomic of another kind: " + i.op);
      for (int l = 0; l < 32; l++)
        if (on[l]) {
          u64 a = G(l, i.args[1][0]) + i.args[1][1].imm;
          if (has(i, "acq_rel") || has(i, "release")) release(c, w);
          u32 old;
          memcpy(&old, place(a, true, 4), 4);
          u32 add = u32(G(l, i.args[2][0]));
          u32 now = old + add;
          memcpy(place(a, true, 4), &now, 4);
          put(w, l, i.args[0][0], old);
          if (has(i, "acq_rel") || has(i, "acquire")) c.seen.clear();
          if (add == 0) polls++;
        }
      break;
    }
    case BRA:
      if (active == 32)
        w.pc = i.target;
      else if (active)
        die("a warp diverges at line " + to_string(i.line));
      break;
    case RET:
      w.done = true;
      break;
  }
  return true;
}
