// Command client calls a method over Parley and prints the answers, equal ones
// once.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/examples/custom-protocol/wire"
)

var (
	addr   = flag.String("addr", "127.0.0.1:7700", "`address` to call")
	tenant = flag.String("tenant", "", "the attribute tenant, unless it is empty")
	n      = flag.Int("n", 1, "`how many` calls to make at once on one connection")
	tell   = flag.Bool("tell", false, "want no answer")
	ping   = flag.Bool("ping", false, "send a PING first")
	raw    = flag.Bool("raw", false, "send the standard input as it is and print what comes back")
)

func main() {
	log.SetFlags(0)
	flag.Usage = func() {
		log.Print("usage: client [FLAGS] METHOD [BODY], or client -raw")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 && !*raw {
		flag.Usage()
		os.Exit(2)
	}
	conn, err := wire.Dial(*addr)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	if *raw {
		err = pipe(conn.(*net.TCPConn))
	} else {
		err = call(conn)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// pipe sends the standard input and prints what comes until the other side
// closes.
func pipe(conn *net.TCPConn) error {
	if _, err := io.Copy(conn, os.Stdin); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return errors.New("closed without an answer")
	}
	fmt.Println(strings.TrimSuffix(string(b), "\n"))
	return nil
}

func call(conn net.Conn) error {
	if *ping {
		if err := (&wire.Frame{Verb: "PING", ID: 1}).Write(conn); err != nil {
			return err
		}
	}
	f := &wire.Frame{Verb: "CALL", Attributes: []string{"method=" + flag.Arg(0)}, Body: strings.Join(flag.Args()[1:], " ")}
	if *tell {
		f.Verb = "TELL"
	}
	if *tenant != "" {
		f.Attributes = append(f.Attributes, "tenant="+*tenant)
	}
	failed := make(chan error, 1)
	go func() {
		for f.ID = 1; f.ID <= uint32(*n); f.ID++ {
			if err := f.Write(conn); err != nil {
				failed <- err
				return
			}
		}
		if *tell {
			failed <- conn.Close()
		}
	}()
	if *tell {
		return <-failed
	}
	answers := map[string]int{}
	r := wire.NewReader(conn)
	for got := 0; got < *n; {
		a, err := wire.Read(r)
		if err != nil {
			return err
		}
		if a.Verb == "PONG" {
			fmt.Println(a.Head())
			continue
		}
		got++
		answers[strings.Join(append([]string{a.Verb}, a.Attributes...), " ")+": "+a.Body]++
	}
	for _, a := range slices.Sorted(maps.Keys(answers)) {
		if *n > 1 {
			fmt.Printf("%d times ", answers[a])
		}
		fmt.Println(a)
	}
	return nil
}
