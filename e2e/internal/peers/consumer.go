package peers

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Command is what a consumer is asked to do. The zero values mean: interface
// Greeter, no group, no version, one call, the consumer's own timeout.
type Command struct {
	ID          int64          `json:"id"`
	Interface   string         `json:"interface,omitempty"`
	Group       string         `json:"group,omitempty"`
	Version     string         `json:"version,omitempty"`
	Method      string         `json:"method"`
	Args        []any          `json:"args,omitempty"`
	Attachments map[string]any `json:"attachments,omitempty"`
	TimeoutMS   int            `json:"timeout_ms,omitempty"`
	Oneway      bool           `json:"oneway,omitempty"`
	Count       int            `json:"count,omitempty"`
	Concurrency int            `json:"concurrency,omitempty"`
	// Close makes each call on a connection of its own, which is closed as soon
	// as the call has returned (Thrift).
	Close bool `json:"close,omitempty"`
	// Attachment is the request's binary attachment, LogID its log id (bRPC).
	Attachment []byte `json:"attachment,omitempty"`
	LogID      int64  `json:"log_id,omitempty"`
	// DurationMS makes the callers call again and again for that long.
	DurationMS int  `json:"duration_ms,omitempty"`
	Summary    bool `json:"summary,omitempty"`
	StreamCommand
}

// Answer is the outcome of one call.
type Answer struct {
	ID          int64          `json:"id"`
	Value       any            `json:"value"`
	Attachments map[string]any `json:"attachments"`
	Attachment  []byte         `json:"attachment"`
	// Error is the text of what the client library reported, ErrorType its
	// class or type, and the code of an RpcException. Both are empty after
	// success.
	Error     string `json:"error"`
	ErrorType string `json:"error_type"`
	LatencyUS int64  `json:"latency_us"`
}

// Summary is the outcome of many calls.
type Summary struct {
	ID        int64            `json:"id"`
	Calls     int              `json:"calls"`
	Values    map[string]int   `json:"values"`
	Errors    map[string]int   `json:"errors"`
	LatencyUS map[string]int64 `json:"latency_us"`
}

// Failed is the number of calls that ended with an error.
func (s Summary) Failed() (n int) {
	for _, c := range s.Errors {
		n += c
	}
	return n
}

// Succeeded is the number of calls that were answered.
func (s Summary) Succeeded() (n int) {
	for _, c := range s.Values {
		n += c
	}
	return n
}

// ConsumerOptions are options of a client process.
type ConsumerOptions struct {
	Place
	// Timeout of a call; 0 is 3 s, of Java's javaTimeout.
	Timeout time.Duration
	// Heartbeat is the period of heartbeats on idle connections; 0 leaves the
	// library's own.
	Heartbeat time.Duration
	// Connections is how many connections the client may open; 0 leaves the
	// library's own.
	Connections int
	// Retries lets a Java client repeat failed calls as often as it does by
	// itself.
	Retries bool
}

// Consumer is a running client process.
type Consumer struct {
	*process
	mu      sync.Mutex
	next    int64
	waiting map[int64]chan json.RawMessage
}

func (l Library) consumer(t testing.TB, port int, o ConsumerOptions) *Consumer {
	t.Helper()
	argv, env := l.consumerCommand(port, o)
	return startConsumer(t, string(l)+" consumer", o.within(argv), env)
}

// startConsumer starts a client program that obeys Commands.
func startConsumer(t testing.TB, name string, argv, env []string) *Consumer {
	t.Helper()
	c := &Consumer{waiting: map[int64]chan json.RawMessage{}}
	c.process = start(t, name, argv, env, c.line)
	go func() {
		<-c.exited
		c.mu.Lock()
		defer c.mu.Unlock()
		for id, ch := range c.waiting {
			delete(c.waiting, id)
			close(ch)
		}
		c.waiting = nil
	}()
	return c
}

func (c *Consumer) line(b []byte) {
	var head struct {
		ID int64 `json:"id"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		c.t.Errorf("%s wrote %.200q: %v", c.name, b, err)
		return
	}
	c.mu.Lock()
	ch := c.waiting[head.ID]
	c.mu.Unlock()
	if ch == nil {
		c.t.Errorf("%s answered nobody: %.200q", c.name, b)
		return
	}
	ch <- b
}

// Pending is a command that was given and may not be finished.
type Pending struct {
	c    *Consumer
	id   int64
	want int
	ch   chan json.RawMessage
}

// Go starts a command.
func (c *Consumer) Go(cmd Command) *Pending {
	c.t.Helper()
	p := &Pending{c: c, want: max(cmd.Count, 1)}
	if cmd.Summary {
		p.want = 1
	}
	p.ch = make(chan json.RawMessage, p.want)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		c.t.Fatalf("%s is gone", c.name)
	}
	c.next++
	p.id, cmd.ID = c.next, c.next
	c.waiting[p.id] = p.ch
	c.mu.Unlock()
	b, err := json.Marshal(cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.stdin.Write(append(b, '\n')); err != nil {
		c.t.Fatalf("%s: %v", c.name, err)
	}
	return p
}

func (p *Pending) wait(within time.Duration) ([]json.RawMessage, error) {
	defer func() {
		p.c.mu.Lock()
		delete(p.c.waiting, p.id)
		p.c.mu.Unlock()
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	var all []json.RawMessage
	for len(all) < p.want {
		select {
		case b, ok := <-p.ch:
			if !ok {
				return all, fmt.Errorf("%s is gone", p.c.name)
			}
			all = append(all, b)
		case <-timer.C:
			return all, fmt.Errorf("%s: %d of %d answers after %v", p.c.name, len(all), p.want, within)
		}
	}
	return all, nil
}

// Patience is how long a test waits for a consumer's answer: far longer than
// any timeout the consumers themselves have.
const Patience = 60 * time.Second

// Summary waits for the outcome of a command with Summary set.
func (p *Pending) Summary() Summary {
	p.c.t.Helper()
	all, err := p.wait(Patience)
	if err != nil {
		p.c.t.Fatal(err)
	}
	var s Summary
	if err := json.Unmarshal(all[0], &s); err != nil {
		p.c.t.Fatal(err)
	}
	return s
}

// Answers waits for one answer per call.
func (p *Pending) Answers() []Answer {
	p.c.t.Helper()
	all, err := p.wait(Patience)
	if err != nil {
		p.c.t.Fatal(err)
	}
	answers := make([]Answer, len(all))
	for i, b := range all {
		if err := json.Unmarshal(b, &answers[i]); err != nil {
			p.c.t.Fatal(err)
		}
	}
	return answers
}

// Call makes one call and waits for its outcome.
func (c *Consumer) Call(cmd Command) Answer {
	c.t.Helper()
	cmd.Count, cmd.Summary = 1, false
	return c.Go(cmd).Answers()[0]
}

// Load makes many calls and waits for their summary.
func (c *Consumer) Load(cmd Command) Summary {
	c.t.Helper()
	cmd.Summary = true
	return c.Go(cmd).Summary()
}
