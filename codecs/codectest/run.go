package codectest

import (
	"flag"
	"fmt"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// update is the flag of every test that runs a suite.
var update = flag.Bool("update", false, "rewrite the golden files of codectest suites")

// property is one thing that holds of every codec.
type property struct {
	name  string
	check func(*check)
}

// properties in the order in which they are checked: the ones on which others
// rest come first.
var properties = []property{
	{"coverage", (*check).coverage},
	{"golden", (*check).golden},
	{"traits", (*check).traitsAreFixed},
	{"attributes", (*check).attributes},
	{"splits", (*check).splits},
	{"views", (*check).views},
	{"round_trip", (*check).roundTrip},
	{"ids", (*check).ids},
	{"mutation", (*check).mutation},
	{"mutation_refused", (*check).mutationRefused},
	{"timeouts", (*check).timeouts},
	{"retries", (*check).retries},
	{"removal", (*check).removal},
	{"payloads", (*check).payloads},
	{"error_replies", (*check).errorReplies},
	{"codes", (*check).codes},
	{"success_replies", (*check).successReplies},
	{"heartbeats", (*check).heartbeats},
	{"stream_resets", (*check).streamResets},
	{"roles", (*check).roles},
	{"farewells", (*check).farewells},
	{"answers", (*check).answers},
	{"unasked", (*check).unasked},
	{"preface", (*check).preface},
	{"reset", (*check).reset},
	{"sniffing", (*check).sniffing},
	{"limits", (*check).limits},
	{"invalid", (*check).invalid},
	{"hostile", (*check).hostile},
	{"cost", (*check).cost},
	{"allocations", (*check).allocations},
	{"orders", (*check).orders},
	{"independence", (*check).independence},
	{"concurrency", (*check).concurrency},
	{"shapes", (*check).shapes},
}

// Run checks that a codec is what the contract in package codecs demands: one
// subtest for each property. What fails is told behind them, each fault once,
// whatever properties find it. t must not be parallel to other tests, as
// allocations are counted.
func Run(t *testing.T, s Suite) {
	t.Helper()
	dog := &watchdog{}
	defer dog.watch()()
	c := newCheck(directly{t}, &s, dog)
	if c == nil {
		return
	}
	var found faults
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			found.property = p.name
			if why := c.run(&found, p); why != "" {
				t.Skip(why)
			}
			if f := found.of(p.name); f != "" {
				t.Error(f)
			}
		})
	}
	if len(found.all) > 0 {
		t.Errorf("%s", &found)
	}
}

// newCheck makes the codec and reads the streams; nil if that fails.
func newCheck(t reporter, s *Suite, dog *watchdog) *check {
	c := &check{t: t, s: s, dog: dog}
	var err error
	if c.codec, err = s.New(codecs.Limits{}); err != nil {
		t.fault(fault{text: fmt.Sprintf("New: %v", err)})
		return nil
	}
	c.traits = c.codec.Traits()
	if !c.load() {
		return nil
	}
	return c
}

// run checks one property. It returns why there was nothing to check.
func (c *check) run(t reporter, p property) (skipped string) {
	one := *c
	one.t, one.mem, one.needed = t, memory{}, map[*stream]bool{}
	one.attempt(func() { p.check(&one) })
	return one.skipped
}
