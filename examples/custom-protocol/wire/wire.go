// Package wire reads and writes frames of Parley. It stands for what the
// clients and servers of a private protocol have long been made with: nothing
// in it knows of Meltemi.
package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Frame is one message.
type Frame struct {
	Verb       string
	ID         uint32
	Attributes []string // each "key=value"
	Body       string
}

const (
	maxHead = 1024
	maxBody = 1 << 20
)

// NewReader returns a reader for Read.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxHead) }

// Read reads one frame.
func Read(r *bufio.Reader) (*Frame, error) {
	head, err := r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	f, size := &Frame{}, 0
	if _, err := fmt.Sscanf(string(head), "%s id=%d len=%d", &f.Verb, &f.ID, &size); err != nil || size < 0 || size > maxBody {
		return nil, fmt.Errorf("%.40q is no head", head)
	}
	f.Attributes = strings.Fields(string(head))[3:]
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, errors.New("a body was cut off")
	}
	f.Body = string(body)
	return f, nil
}

// Head is the first line of f.
func (f *Frame) Head() string {
	words := []string{f.Verb, fmt.Sprintf("id=%d", f.ID), fmt.Sprintf("len=%d", len(f.Body))}
	return strings.Join(slices.Concat(words, f.Attributes), " ")
}

// Write writes f.
func (f *Frame) Write(w io.Writer) error {
	_, err := io.WriteString(w, f.Head()+"\n"+f.Body)
	return err
}

// Get returns the value of an attribute.
func (f *Frame) Get(key string) string {
	for _, a := range f.Attributes {
		if value, ok := strings.CutPrefix(a, key+"="); ok {
			return value
		}
	}
	return ""
}

// Dial connects, and waits for a server that has just been started.
func Dial(addr string) (conn net.Conn, err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err = net.Dial("tcp", addr); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
