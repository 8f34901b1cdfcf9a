package tracing

import (
	"math/rand/v2"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSharesAreWhatTheyAre: of many ids as many are traced as the shares say, by a chi-square
// test, and as many with each remainder.
func TestSharesAreWhatTheyAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const n = 300_000
	for _, tc := range []struct {
		name            string
		random, overall uint64
		want            float64
	}{
		{"0.01 %", 1, shares, .0001},
		{"1 %", 100, shares, .01},
		{"100 %", shares, shares, 1},
		{"none", 0, shares, 0},
		{"all but for the cap", shares, 50, .005},
		{"a cap above it", 100, 5000, .01},
	} {
		c := &Config{random: tc.random, overall: tc.overall}
		var buckets [100]float64
		traced := 0
		for range n {
			var id requestID
			id.generate(rng)
			number, ok := number(id[:])
			if !ok {
				t.Fatal(string(id[:]))
			}
			buckets[number/100]++
			if c.decide(untraced, number, &asked{}, nil, rng) != untraced {
				traced++
			}
		}
		if want := tc.want * n; tc.want == 0 || tc.want == 1 {
			require.Equal(t, int(want), traced, tc.name)
		} else {
			d := float64(traced) - want
			require.Less(t, d*d/want+d*d/(n-want), 10.83, "%s: %d of %d; p < 0.001", tc.name, traced, n)
		}
		chi := 0.0
		for _, b := range buckets {
			d := b - n/100
			chi += d * d / (n / 100)
		}
		require.Less(t, chi, 148.2, "99 degrees of freedom, p < 0.001")
	}
}

func TestRequestIDs(t *testing.T) {
	for _, tc := range []struct {
		id   string
		n    uint64
		ok   bool
		says reason
	}{
		{"0000270f-7b3c-4a5e-8f6d-000000000000", 9999, true, untraced},
		{"00002710-7b3c-4a5e-8f6d-000000000000", 0, true, untraced},
		{"DEADBEEF-7B3C-9A5E-8F6D-000000000000", 0xdeadbeef % 10000, true, randomSampling},
		{"deadbeef-7b3c-aa5e-8f6d-000000000000", 0xdeadbeef % 10000, true, serviceForced},
		{"deadbeef-7b3c-ba5e-8f6d-000000000000", 0xdeadbeef % 10000, true, clientForced},
		{"DEADBEEF-7B3C-BA5E-8F6D-000000000000", 0xdeadbeef % 10000, true, untraced}, // as Envoy's 'b' only
		{"deadbeef-7b3c-1a5e-8f6d-000000000000", 0xdeadbeef % 10000, true, untraced}, // of version 1
		{"deadbeefdeadbeefdeadbeefdeadbeef", 0, false, untraced},
		{"deadbeeg-7b3c-4a5e-8f6d-000000000000", 0, false, untraced},
		{"\x11eadbeef-7b3c-4a5e-8f6d-00000000000", 0, false, untraced},
		{"1234567", 0, false, untraced},
		{"", 0, false, untraced},
	} {
		n, ok := number([]byte(tc.id))
		require.Equal(t, tc.ok, ok, tc.id)
		require.Equal(t, tc.n, n, tc.id)
		if ok {
			var id requestID
			copy(id[:], tc.id)
			require.Equal(t, tc.says, id.reason(), tc.id)
		}
	}
}

func TestGeneratedIDsAreUUIDsOfVersion4(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	v4 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[requestID]bool{}
	for range 1000 {
		var id requestID
		id.generate(rng)
		require.Regexp(t, v4, string(id[:]))
		require.False(t, seen[id])
		seen[id] = true
	}
}

// TestWhoDecides is the order of Envoy's: what the id says, the client, force, the trace
// that it is part of, its number; and the cap above all.
func TestWhoDecides(t *testing.T) {
	yes, no := true, false
	client := func() *asked { a := &asked{}; a.values[keyClientTraceID] = []byte("c"); return a }
	force := func() *asked { a := &asked{}; a.values[keyForceTrace] = []byte("1"); return a }
	none := func() *asked { return &asked{} }
	for _, tc := range []struct {
		name                    string
		client, random, overall uint64
		said                    reason
		n                       uint64
		a                       *asked
		told                    *bool
		want                    reason
	}{
		{"its number is of the share", shares, 5000, shares, untraced, 4999, none(), nil, randomSampling},
		{"its number is not", shares, 5000, shares, untraced, 5000, none(), nil, untraced},
		{"the hop before has said", shares, 0, shares, serviceForced, 9999, none(), nil, serviceForced},
		{"the client asks", shares, 0, shares, untraced, 9999, client(), nil, clientForced},
		{"the client may not ask", 0, 0, shares, untraced, 9999, client(), nil, untraced},
		{"forced", 0, 0, shares, untraced, 9999, force(), nil, serviceForced},
		{"the trace is sampled", 0, 0, shares, untraced, 9999, none(), &yes, randomSampling},
		{"the trace is not", 0, shares, shares, untraced, 0, none(), &no, untraced},
		{"forced in a trace that is not", 0, 0, shares, untraced, 0, force(), &no, serviceForced},
		{"the cap cuts what was said", shares, shares, 100, randomSampling, 100, none(), nil, untraced},
		{"the cap cuts what is forced", shares, shares, 0, untraced, 0, force(), nil, untraced},
		{"below the cap", shares, shares, 100, untraced, 99, none(), nil, randomSampling},
	} {
		c := &Config{client: tc.client, random: tc.random, overall: tc.overall}
		rng := rand.New(rand.NewPCG(1, 1))
		require.Equal(t, string(tc.want), string(c.decide(tc.said, tc.n, tc.a, tc.told, rng)), tc.name)
	}
}
