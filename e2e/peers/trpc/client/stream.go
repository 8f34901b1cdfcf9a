package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	trpc "trpc.group/trpc-go/trpc-go"
	"trpc.group/trpc-go/trpc-go/client"

	"github.com/meltemi-mesh/meltemi/e2e/peers/trpc/greeter"
)

// streamCommand is what a command says of a stream.
//
//	{"id":1,"stream":"open","method":"Chat","attachments":{…}}
//	{"id":2,"stream":"open","method":"Download","items":10,"size":100}
//	{"id":3,"stream":"send","handle":1,"items":10,"size":100}
//	{"id":4,"stream":"receive","handle":1,"items":10,"delay_us":100}
//	{"id":5,"stream":"close","handle":1}
//	{"id":6,"stream":"cancel","handle":1}
//
// The handle is the id of the command that opened the stream. Items that are
// sent are numbered on; "args":["fail"] sends one with that payload. What was
// received is told as {"items":…,"bytes":…,"wrong":"…","end":true,"names":{…}},
// end being true when the stream ended well. Without items, everything until
// the end of the stream is received. The answer to the close of an Upload is
// what the server has counted.
type streamCommand struct {
	Stream  string `json:"stream"`
	Handle  int64  `json:"handle"`
	Items   uint64 `json:"items"`
	Size    int    `json:"size"`
	DelayUS int    `json:"delay_us"`
}

// stream is an open one.
type stream struct {
	client.ClientStream
	upload   bool
	cancel   context.CancelFunc
	sent     uint64
	received greeter.Tally
}

// stream carries a command of a stream out.
func (c *caller) stream(cmd command) (a answer) {
	a.ID = cmd.ID
	start := time.Now()
	value, err := c.onStream(cmd)
	if a.LatencyUS = time.Since(start).Microseconds(); err != nil {
		a.Error, a.ErrorType = describe(err)
	}
	a.Value = value
	return a
}

func (c *caller) onStream(cmd command) (any, error) {
	if cmd.Stream == "open" {
		return nil, c.open(cmd)
	}
	c.streams.Lock()
	s := c.streams.m[cmd.Handle]
	c.streams.Unlock()
	if s == nil {
		return nil, fmt.Errorf("no stream %d", cmd.Handle)
	}
	switch cmd.Stream {
	case "send":
		return nil, s.send(cmd)
	case "receive":
		return s.receive(cmd)
	case "close":
		if err := s.CloseSend(); err != nil || !s.upload {
			return nil, err
		}
		count := &greeter.Count{}
		err := s.RecvMsg(count)
		return map[string]any{
			"name": count.GetName(), "items": count.GetItems(), "bytes": count.GetBytes(), "wrong": count.GetWrong(),
			"metadata": count.GetMetadata(),
		}, err
	case "cancel":
		s.cancel()
		return nil, nil
	}
	return nil, fmt.Errorf("unknown command %q", cmd.Stream)
}

func (c *caller) open(cmd command) (err error) {
	options := c.options
	for k, v := range cmd.Attachments {
		options = append(options[:len(options):len(options)], client.WithMetaData(k, []byte(v)))
	}
	s := &stream{}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(trpc.BackgroundContext())
	p := greeter.NewStreamerClientProxy(options...)
	switch cmd.Method {
	case "Upload":
		s.upload = true
		s.ClientStream, err = p.Upload(ctx)
	case "Download":
		s.ClientStream, err = p.Download(ctx, &greeter.Order{Items: cmd.Items, Size: uint64(cmd.Size)})
	case "Chat":
		s.ClientStream, err = p.Chat(ctx)
	default:
		err = fmt.Errorf("unknown method %q", cmd.Method)
	}
	if err != nil {
		s.cancel()
		return err
	}
	c.streams.Lock()
	defer c.streams.Unlock()
	c.streams.m[cmd.ID] = s
	return nil
}

func (s *stream) send(cmd command) error {
	if len(cmd.Args) > 0 {
		var payload string
		if err := json.Unmarshal(cmd.Args[0], &payload); err != nil {
			return err
		}
		return s.SendMsg(&greeter.Item{Number: s.sent, Payload: []byte(payload)})
	}
	for range max(cmd.Items, 1) {
		if err := s.SendMsg(greeter.NewItem(s.sent, cmd.Size)); err != nil {
			return err
		}
		s.sent++
	}
	return nil
}

func (s *stream) receive(cmd command) (any, error) {
	names, end, err := map[string]int{}, false, error(nil)
	before := s.received
	for n := uint64(0); cmd.Items == 0 || n < cmd.Items; n++ {
		item := &greeter.Item{}
		if err = s.RecvMsg(item); err != nil {
			if end = errors.Is(err, io.EOF); end {
				err = nil
			}
			break
		}
		s.received.Add(item)
		names[item.GetName()]++
		time.Sleep(time.Duration(cmd.DelayUS) * time.Microsecond)
	}
	return map[string]any{
		"items": s.received.Items - before.Items, "bytes": s.received.Bytes - before.Bytes,
		"wrong": s.received.Wrong, "end": end, "names": names,
	}, err
}
