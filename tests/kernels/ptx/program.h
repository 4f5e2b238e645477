// A kernel in PTX, parsed: instructions, labels, registers and parameters.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>
using namespace std;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

[[noreturn]] void die(const string& m) {
  fprintf(stderr, "FAILED: %s\n", m.c_str());
  exit(1);
}
float asf(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
u32 asu(float f) {
  u32 x;
  memcpy(&x, &f, 4);
  return x;
}
float bf(uint16_t h) { return asf(u32(h) << 16); }
uint16_t to_bf(float f) {
  u32 x = asu(f);
  if ((x & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return uint16_t((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}
float half2f(uint16_t h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return float(x);
}

struct Operand {
  enum Kind { Reg, Imm, Tid, Cta, Label } kind = Imm;
  char file = 'r';
  int index = 0;
  u64 imm = 0;
};
struct Ins {
  string op, text;
  vector<string> parts;
  int guard = -1;
  bool negated = false;
  vector<vector<Operand>> args;
  int target = -1;
  int line = 0;
  int code = 0;
};
vector<Ins> program;
map<string, int> labels;
map<string, int> registers[128];
vector<string> parameters;
const u64 SHARED_BASE = 1024;
int threads = 32;

int reg_index(char file, const string& name) {
  auto& m = registers[int(file)];
  auto it = m.find(name);
  if (it != m.end()) return it->second;
  int i = m.size();
  m[name] = i;
  return i;
}
Operand parse_operand(string s) {
  while (!s.empty() && isspace(s.back())) s.pop_back();
  while (!s.empty() && isspace(s.front())) s.erase(s.begin());
  Operand o;
  if (s == "%tid.x") {
    o.kind = Operand::Tid;
    return o;
  }
  if (s == "%ctaid.x") {
    o.kind = Operand::Cta;
    return o;
  }
  if (s[0] == '%') {
    o.kind = Operand::Reg;
    o.file = s.compare(0, 3, "%rd") == 0   ? 'd'
             : s.compare(0, 3, "%rs") == 0 ? 'h'
             : s[1] == 'p'                 ? 'p'
                                           : 'r';
    o.index = reg_index(o.file, s);
    return o;
  }
  if (s == "global_smem") {
    o.imm = SHARED_BASE;
    return o;
  }
  if (s.compare(0, 2, "0f") == 0 || s.compare(0, 2, "0F") == 0) {
    o.imm = strtoull(s.c_str() + 2, nullptr, 16);
    return o;
  }
  if (isdigit(s[0]) || s[0] == '-') {
    o.imm = u64(s[0] == '-' ? strtoll(s.c_str(), nullptr, 0)
                            : (long long)strtoull(s.c_str(), nullptr, 0));
    return o;
  }
  o.kind = Operand::Label;
  return o;
}
vector<string> split_args(const string& s) {
  vector<string> out;
  string now;
  int depth = 0;
  for (char c : s) {
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
    if ((c == ',' || c == '|') && depth == 0) {
      out.push_back(now);
      now.clear();
    } else
      now += c;
  }
  if (now.find_first_not_of(" \t") != string::npos) out.push_back(now);
  return out;
}
void parse(const string& file) {
  ifstream in(file);
  string line, whole;
  int number = 0, start = 0;
  bool body = false;
  vector<pair<string, int>> statements;
  string now;
  while (getline(in, line)) {
    number++;
    size_t c = line.find("//");
    if (c != string::npos) line = line.substr(0, c);
    if (!body) {
      size_t p = line.find(".reqntid");
      if (p != string::npos) threads = atoi(line.c_str() + p + 8);
      if (line.find(".param ") != string::npos)
        parameters.push_back(line.substr(line.rfind(' ') + 1));
      if (line.find('{') == 0) body = true;
      continue;
    }
    for (char ch : line) {
      if (now.empty() && isspace(ch)) continue;
      if (now.empty()) start = number;
      if (ch == ';') {
        statements.push_back({now, start});
        now.clear();
        continue;
      }
      now += ch;
      if (ch == ':' && now[0] == '$') {
        statements.push_back({now, start});
        now.clear();
      }
      if (now == "}" || now == "{") now.clear();
    }
    if (!now.empty()) now += ' ';
  }
  for (auto& p : parameters)
    while (!p.empty() && (p.back() == ',' || isspace(p.back()))) p.pop_back();
  for (auto& [s, n] : statements) {
    if (s[0] == '$' && s.back() == ':') {
      labels[s.substr(0, s.size() - 1)] = program.size();
      continue;
    }
    if (s[0] == '.') continue;
    Ins i;
    i.text = s;
    i.line = n;
    string rest = s;
    if (rest[0] == '@') {
      size_t e = rest.find_first_of(" \t");
      string g = rest.substr(1, e - 1);
      if (g[0] == '!') {
        i.negated = true;
        g = g.substr(1);
      }
      i.guard = reg_index('p', g);
      rest = rest.substr(rest.find_first_not_of(" \t", e));
    }
    size_t e = rest.find_first_of(" \t{");
    i.op = rest.substr(0, e);
    string args = e == string::npos ? "" : rest.substr(e);
    stringstream ss(i.op);
    string part;
    while (getline(ss, part, '.')) i.parts.push_back(part);
    for (auto& a : split_args(args)) {
      string t = a;
      size_t f = t.find_first_not_of(" \t");
      t = t.substr(f);
      vector<Operand> ops;
      if (t[0] == '{') {
        t = t.substr(1, t.rfind('}') - 1);
        for (auto& x : split_args(t)) ops.push_back(parse_operand(x));
      } else if (t[0] == '[') {
        t = t.substr(1, t.rfind(']') - 1);
        size_t plus = t.find('+');
        string base = t.substr(0, plus);
        bool param = base.find("_param_") != string::npos;
        Operand o;
        if (param) {
          for (size_t k = 0; k < parameters.size(); k++) {
            string b = base;
            while (isspace(b.back())) b.pop_back();
            while (isspace(b.front())) b.erase(b.begin());
            if (b == parameters[k]) {
              o.imm = k;
            }
          }
        } else
          o = parse_operand(base);
        ops.push_back(o);
        Operand off;
        if (plus != string::npos) off.imm = strtoll(t.c_str() + plus + 1, nullptr, 0);
        ops.push_back(off);
      } else if (t[0] == '$') {
        Operand o;
        o.kind = Operand::Label;
        ops.push_back(o);
        i.text = t;
        while (isspace(i.text.back())) i.text.pop_back();
      } else
        ops.push_back(parse_operand(t));
      i.args.push_back(ops);
    }
    program.push_back(i);
  }
  for (auto& i : program)
    if (i.parts[0] == "bra") {
      if (!labels.count(i.text)) die("no label " + i.text);
      i.target = labels[i.text];
    }
}
