// Command server serves Greeter over Parley and prints the head of what it
// gets.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/examples/custom-protocol/wire"
)

var (
	addr = flag.String("addr", "127.0.0.1:7701", "`address` to listen on")
	name = flag.String("name", "v1", "`name` that it greets under")
)

func main() {
	flag.Parse()
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	r := wire.NewReader(conn)
	var mu sync.Mutex
	for {
		f, err := wire.Read(r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Print(err)
			}
			return
		}
		log.Print(f.Head())
		go func() { // answers go out as they are ready, in any order
			if a := answer(f); a != nil {
				a.ID = f.ID
				mu.Lock()
				defer mu.Unlock()
				if err := a.Write(conn); err != nil {
					log.Print(err)
				}
			}
		}()
	}
}

func answer(f *wire.Frame) *wire.Frame {
	switch f.Verb {
	case "PING":
		return &wire.Frame{Verb: "PONG"}
	case "CALL":
	default:
		return nil
	}
	switch f.Get("method") {
	case "Greeter.hello":
		return &wire.Frame{Verb: "DONE", Body: fmt.Sprintf("%s says hello to %s", *name, f.Body)}
	case "Greeter.sleep":
		d, err := time.ParseDuration(f.Body)
		if err != nil {
			return &wire.Frame{Verb: "FAIL", Body: err.Error()}
		}
		time.Sleep(d)
		return &wire.Frame{Verb: "DONE", Body: fmt.Sprintf("%s has slept for %v", *name, d)}
	default:
		return &wire.Frame{Verb: "NOPE", Attributes: []string{"code=no-method"}, Body: "what is " + f.Get("method") + "?"}
	}
}
