// Package command is the command line of the tool meltemi. It knows the codecs
// and filters that its program links, and the router, so that a program with a
// codec of one's own is
//
//	func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
//
// and an import for each codec and filter.
package command

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// Exit statuses.
const (
	statusOK    = 0
	statusFault = 1 // a capture that cannot be read or decoded to its end
	statusUsage = 2
)

const usage = `usage: meltemi COMMAND [ARGUMENTS]

  decode PROTOCOL FILE|-   print the frames of a capture
  envoyfilter [FILE|-]     print the EnvoyFilters of a service in Istio
  check FILE|-             validate what a file configures
  convert FILE|-           print the configuration of another proxy as Meltemi's
  routes -address ADDRESS  print the route tables of a running Envoy
  logs -address ADDRESS reopen
                           have it open the files of access logs anew
  status [HOST]            print what the control plane has programmed
  new-codec NAME           write a module to begin a codec with
  new-filter NAME          write a module to begin a filter with
  codecs                   list the codecs that are linked
  version                  print what this program was built from
  help [COMMAND]           print this, or the flags of a command
`

const decodeUsage = `usage: meltemi decode [FLAGS] PROTOCOL FILE|-

Prints the frames of a file that holds the bytes of one direction of one
connection from its first on; - is the standard input. PROTOCOL is a name that
"meltemi codecs" lists, long or short; with "auto" the first bytes choose, as
they do on a listener with several codecs. What servers say in a protocol without
ids may depend on the requests (memcached): then what clients say is all that can
be printed.

The status is 0 if every byte belongs to a frame, else 1.

`

// env is what a command works with.
type env struct {
	stdin  io.Reader
	stdout *bufio.Writer
	stderr io.Writer
}

// printf prints. That nothing can be written any more bufio remembers for Main.
func (e *env) printf(format string, args ...any) { _, _ = fmt.Fprintf(e.stdout, format, args...) }

// complain prints on the standard error, which is the last resort.
func (e *env) complain(format string, args ...any) { _, _ = fmt.Fprintf(e.stderr, format, args...) }

// Main runs the command that args, without the program's name, ask for, and
// returns the exit status.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	e := &env{stdin, bufio.NewWriter(stdout), stderr}
	status := e.run(args)
	if err := e.stdout.Flush(); err != nil {
		return e.fail(statusFault, "%v", err)
	}
	return status
}

func (e *env) run(args []string) int {
	if len(args) == 0 {
		e.complain(usage)
		return statusUsage
	}
	name, args := args[0], args[1:]
	switch {
	case name == "decode":
		return e.decode(args)
	case name == "envoyfilter":
		return e.envoyfilter(args)
	case name == "check":
		return e.check(args)
	case name == "convert":
		return e.convert(args)
	case name == "routes":
		return e.routes(args)
	case name == "logs":
		return e.logs(args)
	case name == "status":
		return e.status(args)
	case name == "new-codec":
		return e.newCodec(args)
	case name == "new-filter":
		return e.newFilter(args)
	case name == "help" || name == "-h" || name == "-help" || name == "--help":
		return e.help(args)
	case len(args) > 0 && (name == "codecs" || name == "version"):
		e.complain("meltemi: %s has no arguments\n\n%s", name, usage)
	case name == "codecs":
		return e.codecs()
	case name == "version":
		return e.version()
	default:
		e.complain("meltemi: unknown command %q\n\n%s", name, usage)
	}
	return statusUsage
}

// fail says what is wrong, behind what was printed before.
func (e *env) fail(status int, format string, args ...any) int {
	_ = e.stdout.Flush() // Main reports it
	e.complain("meltemi: "+format+"\n", args...)
	return status
}

func (e *env) help(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "decode":
			return e.decode([]string{"-h"})
		case "envoyfilter":
			return e.envoyfilter([]string{"-h"})
		case "check":
			return e.check([]string{"-h"})
		case "convert":
			return e.convert([]string{"-h"})
		case "routes":
			return e.routes([]string{"-h"})
		case "logs":
			return e.logs([]string{"-h"})
		case "status":
			return e.status([]string{"-h"})
		case "new-codec":
			return e.newCodec([]string{"-h"})
		case "new-filter":
			return e.newFilter([]string{"-h"})
		case "codecs", "version", "help":
		default:
			e.complain("meltemi: unknown command %q\n\n%s", args[0], usage)
			return statusUsage
		}
	}
	e.printf(usage)
	return statusOK
}

// parse parses flags that may stand before, between and behind the arguments.
func parse(fs *flag.FlagSet, args []string) (positional []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return positional, nil
		}
		positional, args = append(positional, fs.Arg(0)), fs.Args()[1:]
	}
}

// flags parses the arguments of a command, of which there must be at least
// least and at most most. If ok is false the command ends with status.
func (e *env) flags(fs *flag.FlagSet, help string, args []string, least, most int) (positional []string, status int, ok bool) {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	show := func(w io.Writer) {
		fs.SetOutput(w)
		fs.PrintDefaults()
	}
	positional, err := parse(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		e.printf("%s", help)
		show(e.stdout)
		return nil, statusOK, false
	case err == nil && len(positional) < least:
		err = fmt.Errorf("%s wants %s, got %d", fs.Name(), arguments("", least), len(positional))
	case err == nil && len(positional) > most:
		err = fmt.Errorf("%s wants %s, got %d", fs.Name(), arguments("at most ", most), len(positional))
	}
	if err != nil {
		e.complain("meltemi: %v\n\n%s", err, help)
		show(e.stderr)
		return nil, statusUsage, false
	}
	return positional, statusOK, true
}

func arguments(most string, n int) string {
	if n == 1 {
		return most + "1 argument"
	}
	return fmt.Sprintf("%s%d arguments", most, n)
}

const module = "github.com/meltemi-mesh/meltemi"

func (e *env) version() int {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return e.fail(statusFault, "this program was built without module support")
	}
	e.printf("%s %s\n", info.Main.Path, info.Main.Version)
	for _, d := range info.Deps {
		if d.Path == module { // the program is somebody else's
			e.printf("%s %s\n", d.Path, d.Version)
		}
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision", "vcs.time", "vcs.modified":
			e.printf("%s %s\n", s.Key, s.Value)
		}
	}
	e.printf("%s %s/%s\n", info.GoVersion, runtime.GOOS, runtime.GOARCH)
	return statusOK
}
