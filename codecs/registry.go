package codecs

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/types/known/anypb"
)

// Limits bound what a peer can make a codec do. The zero value of a field
// means the codec's default.
type Limits struct {
	// MaxFrameBytes is the largest frame, header included. A larger one is a
	// protocol error as soon as its length is known.
	MaxFrameBytes int
}

// Factory makes a codec of one name from its config, at config load. config
// may be nil, as most codecs have no options. Its errors name the field.
type Factory func(config *anypb.Any, limits Limits) (Codec, error)

var registry = struct {
	sync.RWMutex
	m map[string]Factory
}{m: map[string]Factory{}}

// Register makes a codec known under its config name, such as
// "aeraki.meta_protocol.codec.dubbo". It is called from init functions and
// panics when the name is taken.
func Register(name string, f Factory) {
	registry.Lock()
	defer registry.Unlock()
	if _, dup := registry.m[name]; dup || name == "" || f == nil {
		panic(fmt.Sprintf("codecs: cannot register %q", name))
	}
	registry.m[name] = f
}

// Lookup returns the factory of a registered codec.
func Lookup(name string) (Factory, bool) {
	registry.RLock()
	defer registry.RUnlock()
	f, ok := registry.m[name]
	return f, ok
}

// Names lists the registered codecs in order.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.m))
}
