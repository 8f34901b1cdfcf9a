// Package calls makes calls of every kind with real clients, and knows what must
// come of them, whatever lies between client and server.
package calls

import (
	"time"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

const (
	patience = 20 * time.Second
	tick     = 20 * time.Millisecond
)

func call(method string, args ...any) peers.Command {
	return peers.Command{Method: method, Args: args}
}
