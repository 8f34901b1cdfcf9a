package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/export"
)

const (
	// maxQueued bytes wait for a file: what is beyond is lost, and counted.
	maxQueued = 4 << 20
	// fullBytes is when a worker hands over what it has gathered, without waiting for
	// its timer. Large writes are cheaper, up to about this.
	fullBytes = 128 << 10
	// wakeBytes is how much waits for a file before its writer is woken for it, without
	// waiting for a worker's timer: that costs more than to write some lines.
	wakeBytes = 256 << 10
	// lookTime is how often a file is looked for at its path, and how long a failed
	// write waits until it is tried again.
	lookTime = time.Second
	// drainTime is how long a pipe may take for what waits behind its last user.
	drainTime = 3 * time.Second
)

// Files are the files of a process that logs are written to, each opened once.
type Files struct {
	mu   sync.Mutex
	open map[string]*File
}

// File is one of them.
type File struct {
	path  string
	logf  func(format string, args ...any)
	users int // of Files

	mu     sync.Mutex
	queue  [][]byte // whole lines, by the workers' buffers
	lines  []int    // in each of queue
	queued int      // bytes
	lost   int64    // lines, not yet told
	free   [][]byte
	begun  bool
	more   chan struct{}
	ended  chan struct{} // closed behind the last user
	// reopens are answered by the writer when it has opened the file anew.
	reopens chan chan error

	// The writer's own.
	f       *os.File
	looked  time.Time
	failing bool
	within  bool // a line, of which a part is written
}

// Open returns the file at path, for one more user. What is handed over for it waits
// until [File.Begin]. logf tells of failures.
func (fs *Files) Open(path string, logf func(format string, args ...any)) (*File, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.open[path]; f != nil {
		f.users++
		return f, nil
	}
	f := &File{path: path, logf: logf, users: 1, more: make(chan struct{}, 1), ended: make(chan struct{}), reopens: make(chan chan error)}
	if err := f.reopen(); err != nil {
		return nil, err
	}
	if fs.open == nil {
		fs.open = map[string]*File{}
	}
	fs.open[path] = f
	return f, nil
}

// Path returns the path that it was opened by.
func (f *File) Path() string { return f.path }

// Close ends one use. The last one has what waits written, and the file closed.
func (fs *Files) Close(f *File) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.users--; f.users > 0 {
		return
	}
	delete(fs.open, f.path)
	close(f.ended)
	if !f.begun {
		f.close()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil {
		_ = f.f.SetWriteDeadline(time.Now().Add(drainTime)) // files have none, and need none
	}
}

// Begin starts to write, on a goroutine that running counts, until the last user has
// closed the file. Further calls do nothing.
func (fs *Files) Begin(f *File, running *sync.WaitGroup) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !f.begun {
		f.begun = true
		running.Go(f.run)
	}
}

// Reopen has each file opened anew at its path, as who rotates logs wants it: when it has
// returned nothing more is written to those that were open. The process's own outputs
// stay as they are. It returns the paths, and an error for each file that could not be
// opened, or whose writer was too busy to hear of it before ctx was done: that stays in
// use.
func (fs *Files) Reopen(ctx context.Context) (paths []string, err error) {
	fs.mu.Lock()
	open := slices.SortedFunc(maps.Values(fs.open), func(a, b *File) int { return strings.Compare(a.path, b.path) })
	fs.mu.Unlock()
	var errs []error
	for _, f := range open {
		if f.path == Stdout || f.path == Stderr {
			continue
		}
		switch err := fs.anew(ctx, f); {
		case err != nil:
			errs = append(errs, fmt.Errorf("access log %s: %w", f.path, err))
		default:
			paths = append(paths, f.path)
		}
	}
	return paths, errors.Join(errs...)
}

func (fs *Files) anew(ctx context.Context, f *File) error {
	fs.mu.Lock()
	if !f.begun {
		defer fs.mu.Unlock()
		if f.users == 0 {
			return nil
		}
		return f.reopen()
	}
	fs.mu.Unlock()
	done := make(chan error, 1)
	select {
	case f.reopens <- done:
		return <-done
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *File) wake() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// reopen opens the file anew. A pipe that nobody reads is an error.
func (f *File) reopen() error {
	var file *os.File
	var err error
	switch f.path {
	case Stdout:
		file = os.Stdout
	case Stderr:
		file = os.Stderr
	default:
		file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o644)
	}
	if err != nil {
		return err
	}
	f.close()
	f.looked = time.Now()
	f.mu.Lock()
	f.f = file
	f.mu.Unlock()
	return nil
}

func (f *File) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil && f.f != os.Stdout && f.f != os.Stderr {
		f.f.Close()
	}
	f.f = nil
}

// moved reports whether the path names another file by now, or none: the log was
// rotated.
func (f *File) moved() bool {
	if f.f == os.Stdout || f.f == os.Stderr {
		return false
	}
	there, err := os.Stat(f.path)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	ours, err := f.f.Stat()
	return err == nil && !os.SameFile(there, ours)
}

// run writes what comes, and, behind the last user, what is left.
func (f *File) run() {
	defer f.close()
	for over := false; !over; {
		select {
		case <-f.more:
		case done := <-f.reopens:
			err := f.reopen()
			f.begin(nil)
			done <- err
		case <-f.ended:
			over = true
		}
		for b, n := f.take(); b != nil; b, n = f.take() {
			f.write(b, n)
			f.giveBack(b)
		}
	}
}

// take returns the lines that have waited longest, nil if none do.
func (f *File) take() (b []byte, lines int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return nil, 0
	}
	b, lines = f.queue[0], f.lines[0]
	f.queue, f.lines = f.queue[1:], f.lines[1:]
	f.queued -= len(b)
	return b, lines
}

func (f *File) giveBack(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.free) < 8 && cap(b) <= 2*fullBytes {
		f.free = append(f.free, b[:0])
	}
}

// write writes whole lines. What a file does not take is tried again until it does, or
// the file is given up: meanwhile the queue fills, and what is beyond it is lost.
func (f *File) write(b []byte, lines int) {
	all := b
	for len(b) > 0 {
		err := error(nil)
		if now := time.Now(); now.Sub(f.looked) >= lookTime || f.failing {
			f.looked = now
			if f.moved() {
				if err = f.reopen(); err == nil {
					b = f.begin(b)
				}
			}
		}
		if err == nil { // else what is open has no name any more, and would take lines to nowhere
			var n int
			if n, err = f.f.Write(b); err != nil {
				n -= f.takeBack(b[:n])
			}
			if n > 0 {
				f.within = b[n-1] != '\n'
			}
			b = b[n:]
		}
		if err == nil {
			f.failing = false
			continue
		}
		f.fail(err)
		select {
		case done := <-f.reopens:
			if err = f.reopen(); err == nil {
				b = f.begin(b)
			}
			done <- err
		case <-f.ended:
			if bytes.Count(all, newline) == lines { // each ends with one
				lines = bytes.Count(b, newline)
			}
			f.lose(lines)
			return
		case <-time.After(lookTime):
		}
	}
}

var newline = []byte{'\n'}

// takeBack takes the part of a line back that b, which has been written, ends with, and
// returns its length; 0 if it has to stay. A disk that is full ends lines anywhere.
func (f *File) takeBack(b []byte) int {
	part := len(b) - (bytes.LastIndexByte(b, '\n') + 1)
	if f.within && part == len(b) || part == 0 {
		return 0
	}
	info, err := f.f.Stat()
	if err != nil || !info.Mode().IsRegular() || f.f.Truncate(info.Size()-int64(part)) != nil {
		return 0
	}
	return part
}

// begin is called when another file has been opened: the end of a line whose beginning is
// in the one before is left out of b, and lost.
func (f *File) begin(b []byte) []byte {
	if i := bytes.IndexByte(b, '\n'); f.within && i >= 0 {
		b = b[i+1:]
		f.lose(1)
	}
	f.within = false
	return b
}

// fail tells of a failure, once until it is over.
func (f *File) fail(err error) {
	if !f.failing {
		f.failing = true
		f.logf("meltemi: access log %s: %v: lines wait, and are lost beyond %d bytes", f.path, err, maxQueued)
	}
}

func (f *File) lose(lines int) {
	f.mu.Lock()
	f.lost += int64(lines)
	f.mu.Unlock()
}

// Buffer is what a worker has gathered for a file, or a collector.
type Buffer struct {
	file    *File
	records *export.Records // if there is no file
	data    []byte
	lines   int
}

// NewBuffer returns a worker's buffer for f.
func NewBuffer(f *File) *Buffer { return &Buffer{file: f} }

// NewRecordsBuffer returns a worker's buffer for r.
func NewRecordsBuffer(r *export.Records) *Buffer { return &Buffer{records: r} }

// Empty reports whether there is nothing to hand over.
func (b *Buffer) Empty() bool { return b.lines == 0 }

// Full reports whether it should be handed over at once.
func (b *Buffer) Full() bool { return len(b.data) >= fullBytes }

// Flush hands over what was gathered, and has what waits for the file written. It returns
// how many lines were handed over, and how many of the file's are lost that nobody has
// been told of.
func (b *Buffer) Flush() (written, lost int64) { return b.pass(true) }

// Queue is Flush, but that a file may wait until there is more, or for the next Flush.
func (b *Buffer) Queue() (written, lost int64) { return b.pass(false) }

func (b *Buffer) pass(now bool) (written, lost int64) {
	if b.file == nil {
		return b.flushRecords()
	}
	f := b.file
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case b.lines == 0:
	case f.queued+len(b.data) > maxQueued:
		f.lost += int64(b.lines)
		if b.data = b.data[:0]; cap(b.data) > 2*fullBytes {
			b.data = nil // what a long line needed
		}
	default:
		f.queue, f.lines = append(f.queue, b.data), append(f.lines, b.lines)
		f.queued += len(b.data)
		written = int64(b.lines)
		b.data = nil
		if n := len(f.free); n > 0 {
			b.data, f.free = f.free[n-1], f.free[:n-1]
		}
	}
	if f.queued > 0 && now || f.queued >= wakeBytes {
		f.wake()
	}
	b.lines = 0
	lost, f.lost = f.lost, 0
	return written, lost
}
