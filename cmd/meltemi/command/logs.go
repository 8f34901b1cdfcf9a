package command

import (
	"flag"
	"net/http"
)

const logsUsage = `usage: meltemi logs -address ADDRESS reopen

Has a running Envoy open the files of Meltemi's access logs anew, and prints
their paths: for who rotates logs. When it has ended nothing more is written to
the files that were open. What Envoy itself logs is not concerned.

ADDRESS is the admin_address of the carrier filter's configuration: unix:/PATH
or HOST:PORT.

`

// logs does something with the access logs of a running process.
func (e *env) logs(args []string) int {
	fs := flag.NewFlagSet("logs", flag.ContinueOnError)
	address := fs.String("address", "", "`address` of the process")
	verbs, status, ok := e.flags(fs, logsUsage, args, 1, 1)
	switch {
	case !ok:
		return status
	case verbs[0] != "reopen":
		return e.fail(statusUsage, "logs can reopen, not %s", verbs[0])
	case *address == "":
		return e.fail(statusUsage, "logs wants -address")
	}
	text, err := page(http.MethodPost, *address, "/reopen_logs")
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	e.printf("%s", text)
	return statusOK
}
