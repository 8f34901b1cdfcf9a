#include <sys/prctl.h>

#include "hooks.h"

// Go's monitor thread sees that a worker has been in C for longer than a
// goroutine may run, which is what workers do, takes its processor away, and
// looks again 20 µs later: some ten thousand times a second as long as there is
// traffic. Nobody needs what it takes, as there are more processors than workers
// (process.SetUp). A thread's timers are as lazy as those of the thread that made
// it: so while Go's first threads are made, this one's are.
enum { LAZY = 5 * 1000 * 1000 }; // ns

static unsigned long usual;

// Runs before Go's own constructor, which has no priority.
__attribute__((constructor(101))) static void make_go_lazy(void) {
  int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  if (slack <= 0) return;
  usual = slack;
  prctl(PR_SET_TIMERSLACK, LAZY, 0, 0, 0);
}

void mt_loaded(void) {
  if (usual) prctl(PR_SET_TIMERSLACK, usual, 0, 0, 0);
  usual = 0;
}
