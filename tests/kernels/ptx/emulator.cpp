// Runs a kernel's PTX on a CPU: every program (CTA) of the grid, warps in lockstep, any
// interleaving.
//
//   emulator KERNEL.ptx LAUNCH SEED MODE
//
// LAUNCH: lines "grid N", "shared BYTES", then one a parameter: "FILE BYTES in|out" or "same INDEX"
// (an alias). Outputs are written to FILE.out. MODE "weak": stores of a CTA reach others only after
// a release that follows them (a random part earlier), plain loads may return what this CTA saw
// before its last acquire; "strong": one memory. Fails on: out of bounds, a read of what nobody
// wrote, a warp that diverges at a branch, a deadlock.
#include "instructions.h"

int main(int argc, char** argv) {
  if (argc < 5) die("emulator KERNEL.ptx LAUNCH SEED MODE");
  parse(argv[1]);
  table();
  classify();
  rng.seed(atoi(argv[3]));
  weak = string(argv[4]) == "weak";
  ifstream launch(argv[2]);
  string line;
  int grid = 1;
  while (getline(launch, line)) {
    stringstream s(line);
    string first;
    s >> first;
    if (first == "grid")
      s >> grid;
    else if (first == "shared")
      s >> shared_size;
    else if (first == "same") {
      int k;
      s >> k;
      buffer_of_param.push_back(buffer_of_param[k]);
    } else {
      Buffer b;
      u64 n;
      string kind;
      s >> n >> kind;
      b.file = first;
      b.data.resize(n);
      b.out = kind == "out";
      b.written.assign(n, !b.out);
      if (!b.out) {
        ifstream f(first, ios::binary);
        f.read((char*)b.data.data(), n);
        if (u64(f.gcount()) != n) die("short file " + first);
      } else
        for (auto& x : b.data) x = uint8_t(rng());
      buffer_of_param.push_back(buffers.size());
      buffers.push_back(move(b));
    }
  }
  if (buffer_of_param.size() < parameters.size()) die("fewer buffers than parameters");
  vector<Cta> ctas(grid);
  int nw = threads / 32;
  for (int g = 0; g < grid; g++) {
    Cta& c = ctas[g];
    c.id = g;
    c.shared.assign(shared_size, 0);
    c.shared_written.assign(shared_size, 0);
    c.warps.resize(nw);
    for (auto& w : c.warps) {
      w.r.resize(32 * registers[int('r')].size());
      w.d.resize(32 * registers[int('d')].size());
      w.h.resize(32 * registers[int('h')].size());
      w.p.resize(32 * registers[int('p')].size());
    }
  }
  vector<int> alive(grid);
  for (int g = 0; g < grid; g++) alive[g] = g;
  u64 without = 0;
  while (!alive.empty()) {
    int k = rng() % alive.size();
    Cta& c = ctas[alive[k]];
    // A turn of random length; sometimes very long, so that a program runs as far ahead as it can.
    u64 turn = rng() % 16 == 0 ? 200000 : 1 + rng() % 2000, polled = polls;
    for (u64 t = 0; t < turn;) {
      vector<int> ready;
      bool all = true;
      for (int x = 0; x < nw; x++) {
        Warp& w = c.warps[x];
        if (w.done) continue;
        all = false;
        if (!w.waiting) ready.push_back(x);
      }
      if (all) {
        for (auto& w : c.warps) {
          if (w.copies.size() > 1 || !w.copies[0].empty()) die("copies that nobody waited for");
          release(c, w);
        }
        alive.erase(alive.begin() + k);
        without = 0;
        break;
      }
      if (ready.empty()) {  // everyone has come to the barrier
        for (auto& w : c.warps) {
          w.waiting = false;
          for (auto& [a, v] : w.stores) c.ordered[a] = v;
          w.stores.clear();
        }
        continue;
      }
      int x = ready[rng() % ready.size()];
      u64 run = 1 + rng() % 64;
      for (u64 r = 0; r < run && !c.warps[x].waiting && !c.warps[x].done; r++, t++) step(c, x);
      if (polls - polled > 4) break;  // it only waits
    }
    if (++without > 2000000) die("no progress: a deadlock, or programs that wait for ever");
    if (polls == polled) without = 0;
  }
  for (size_t b = 0; b < buffers.size(); b++) {
    ofstream f(buffers[b].file + ".out", ios::binary);
    f.write((char*)buffers[b].data.data(), buffers[b].data.size());
  }
  printf(
      "{\"programs\": %d, \"warps\": %d, \"warp_instructions\": %llu, \"polls\": %llu, "
      "\"shared_bytes\": %llu, \"stale_bytes_read\": %llu, \"plain_loads\": %llu, \"mode\": "
      "\"%s\"}\n",
      grid, nw, (unsigned long long)executed, (unsigned long long)polls,
      (unsigned long long)peak_shared, (unsigned long long)stale_hits,
      (unsigned long long)plain_loads, argv[4]);
}
