// Memory as programs of a grid see it: global memory, weakly ordered; shared memory of each; what
// nobody has written is known.
#pragma once
#include "program.h"
struct Buffer {
  string file;
  vector<uint8_t> data, written;
  bool out;
};
vector<Buffer> buffers;
vector<int> buffer_of_param;
bool weak = false;
mt19937_64 rng;
typedef unordered_map<u64, uint8_t> Bytes;

struct Warp {
  vector<u32> r;
  vector<u64> d;
  vector<uint16_t> h;
  vector<uint8_t> p;
  int pc = 0;
  bool waiting = false, done = false;
  Bytes stores;
  // Asynchronous copies under way, by group: bytes of shared memory by address. The last group is
  // open.
  vector<Bytes> copies = vector<Bytes>(1);
};
struct Cta {
  int id;
  vector<Warp> warps;
  vector<uint8_t> shared, shared_written;
  Bytes ordered, seen;
  u64 steps = 0;
};
u64 shared_size = 0, executed = 0, peak_shared = 0, stale_hits = 0, polls = 0, plain_loads = 0;
const Ins* current = nullptr;

uint8_t* place(u64 a, bool write, u64 n) {
  u64 b = (a >> 36);
  if (b == 0 || b > buffers.size())
    die("address outside every buffer at line " + to_string(current->line) + ": " + current->op);
  u64 off = a & ((u64(1) << 36) - 1);
  auto& buf = buffers[b - 1];
  if (off + n > buf.data.size())
    die("out of bounds: " + buf.file + " at byte " + to_string(off) + " of " +
        to_string(buf.data.size()) + ", line " + to_string(current->line));
  (void)write;
  return &buf.data[off];
}
void check_written(u64 a) {
  auto& buf = buffers[(a >> 36) - 1];
  if (!buf.written[a & ((u64(1) << 36) - 1)])
    die("read of what nobody wrote: " + buf.file + " byte " + to_string(a & ((u64(1) << 36) - 1)) +
        ", line " + to_string(current->line) + ": " + current->op);
}
uint8_t load_byte(Cta& c, Warp& w, u64 a, bool bypass) {
  if (weak) {
    auto it = w.stores.find(a);
    if (it != w.stores.end()) return it->second;
    it = c.ordered.find(a);
    if (it != c.ordered.end()) return it->second;
    if (!bypass) {
      it = c.seen.find(a);
      if (it != c.seen.end()) {
        if (it->second != *place(a, false, 1)) stale_hits++;
        return it->second;
      }
    }
  }
  uint8_t v = *place(a, false, 1);
  check_written(a);
  if (weak && !bypass) c.seen[a] = v;
  return v;
}
void commit(u64 a, uint8_t v) {
  *place(a, true, 1) = v;
  buffers[(a >> 36) - 1].written[a & ((u64(1) << 36) - 1)] = 1;
}
void store_byte(Cta& c, Warp& w, u64 a, uint8_t v) {
  place(a, true, 1);
  if (!weak) {
    commit(a, v);
    return;
  }
  w.stores[a] = v;
  c.seen.erase(a);
  c.ordered.erase(a);
  if (rng() % 8 == 0) {
    commit(a, v);
  }
}
u64 load(Cta& c, Warp& w, u64 a, int n, bool bypass) {
  u64 v = 0;
  if (!weak) {
    uint8_t* q = place(a, false, n);
    for (int i = 0; i < n; i++) check_written(a + i);
    memcpy(&v, q, n);
    return v;
  }
  for (int i = 0; i < n; i++) v |= u64(load_byte(c, w, a + i, bypass)) << (8 * i);
  return v;
}
void store(Cta& c, Warp& w, u64 a, u64 v, int n) {
  for (int i = 0; i < n; i++) store_byte(c, w, a + i, uint8_t(v >> (8 * i)));
}
void release(Cta& c, Warp& w) {
  for (auto& [a, v] : c.ordered) commit(a, v);
  for (auto& [a, v] : w.stores) commit(a, v);
  c.ordered.clear();
  w.stores.clear();
}
uint8_t* shared_at(Cta& c, u64 a, u64 n) {
  if (a < SHARED_BASE || a - SHARED_BASE + n > c.shared.size())
    die("shared memory out of bounds: " + to_string(s64(a - SHARED_BASE)) + ", line " +
        to_string(current->line));
  peak_shared = max(peak_shared, a - SHARED_BASE + n);
  return &c.shared[a - SHARED_BASE];
}
u64 shared_load(Cta& c, u64 a, int n) {
  uint8_t* q = shared_at(c, a, n);
  for (int i = 0; i < n; i++)
    if (!c.shared_written[a - SHARED_BASE + i])
      die("read of shared memory that nobody wrote, line " + to_string(current->line));
  u64 v = 0;
  memcpy(&v, q, n);
  return v;
}
void shared_store(Cta& c, u64 a, u64 v, int n) {
  memcpy(shared_at(c, a, n), &v, n);
  memset(&c.shared_written[a - SHARED_BASE], 1, n);
}

// An asynchronous copy: until it is waited for nobody may read where it goes, not even what was
// there before.
void copy_async(Cta& c, Warp& w, u64 to, uint8_t value) {
  shared_at(c, to, 1);
  c.shared_written[to - SHARED_BASE] = 0;
  w.copies.back()[to] = value;
}
void end_group(Warp& w) { w.copies.emplace_back(); }
// Completes all groups but the newest `left` closed ones.
void wait_copies(Cta& c, Warp& w, size_t left) {
  while (w.copies.size() > left + 1) {
    for (auto& [to, value] : w.copies.front()) shared_store(c, to, value, 1);
    w.copies.erase(w.copies.begin());
  }
}
