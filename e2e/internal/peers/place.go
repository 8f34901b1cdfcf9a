package peers

import "fmt"

// Place is where a peer runs and which address it serves or calls. The zero
// value is 127.0.0.1 where the test itself is.
type Place struct {
	// Netns is a network namespace as `ip netns` knows it.
	Netns string
	// Host is the address.
	Host string
}

func (p Place) host() string {
	if p.Host == "" {
		return "127.0.0.1"
	}
	return p.Host
}

func (p Place) address(port int) string { return fmt.Sprintf("%s:%d", p.host(), port) }

// within is the command that runs argv there.
func (p Place) within(argv []string) []string {
	if p.Netns == "" {
		return argv
	}
	return append([]string{"ip", "netns", "exec", p.Netns}, argv...)
}
