package consumer

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	consumerv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/consumer/v1alpha"
)

// Bounds, those of texts in bytes.
const (
	maxConsumers = 10_000
	maxKeyNames  = 8
	maxName      = 256
	maxSecret    = 4096
)

// config is the frozen configuration.
type config struct {
	byPrincipal map[string]*filter.Consumer
	byKey       map[sum]*filter.Consumer
	keyNames    []string
	refuses     bool
	hides       bool
	reply       codecs.LocalError
}

// sum is the digest of a key. Keys are found by it and nothing else: how long that takes
// says nothing of a key, as nobody knows the salt.
type sum [sha256.Size]byte

var salt = func() (s sum) {
	rand.Read(s[:]) // never fails
	return s
}()

// digest returns that of a key, that of none if it is too long to be one.
func digest(key []byte) sum {
	if len(key) == 0 || len(key) > maxSecret {
		return sum{}
	}
	return salted(sha256.Sum256(key))
}

func salted(plain sum) sum {
	var both [2 * sha256.Size]byte
	copy(both[:], salt[:])
	copy(both[sha256.Size:], plain[:])
	return sha256.Sum256(both[:])
}

func parse(packed *anypb.Any, env *filter.Env) (*config, error) {
	m := new(consumerv1alpha.Consumers)
	if err := fields.Unpack(packed, m); err != nil {
		return nil, err
	}
	c := &config{
		byPrincipal: map[string]*filter.Consumer{}, byKey: map[sum]*filter.Consumer{},
		keyNames: m.GetKeyNames(), hides: m.GetHideKeys(),
	}
	var faults fields.Faults
	switch m.GetUnknown() {
	case consumerv1alpha.Consumers_REFUSE:
		c.refuses = true
	case consumerv1alpha.Consumers_PASS:
	default:
		faults.Add("unknown", "unknown value %d", m.GetUnknown())
	}
	if n := len(c.keyNames); n > maxKeyNames {
		faults.Add("key_names", "at most %d, has %d", maxKeyNames, n)
	}
	for i, name := range c.keyNames {
		path := fmt.Sprintf("key_names[%d]", i)
		length(name, maxName, path, &faults)
		if c.hides {
			if err := removable(env.Codecs, name); err != nil {
				faults.Add("hide_keys", "%s: %v", path, err)
			}
		}
	}
	var errs []*route.Error
	c.reply, errs = route.Reply(m.GetReply(), codecs.LocalError{Type: codecs.Denied, Message: "unknown consumer"}, "reply", env.Codecs)
	for _, e := range errs {
		faults.Add(e.Path, "%s", e.Reason)
	}
	switch n := len(m.GetConsumers()); {
	case n == 0:
		faults.Add("consumers", "required")
	case n > maxConsumers:
		faults.Add("consumers", "at most %d, has %d", maxConsumers, n)
		return nil, faults.Err()
	}
	names := map[string]bool{}
	for i, from := range m.GetConsumers() {
		path := fmt.Sprintf("consumers[%d]", i)
		length(from.GetName(), maxName, path+".name", &faults)
		if names[from.GetName()] {
			faults.Add(path+".name", "%.80q occurs twice", from.GetName())
		}
		names[from.GetName()] = true
		c.add(from, env, path, &faults)
	}
	return c, faults.Err()
}

// add adds a consumer, and how it is known.
func (c *config) add(from *consumerv1alpha.Consumer, env *filter.Env, path string, faults *fields.Faults) {
	of, err := env.Consumer(from.GetName(), from.GetTypedPerFilterConfig())
	faults.AddAll(path, err)
	for i, p := range from.GetPrincipals() {
		at := fmt.Sprintf("%s.principals[%d]", path, i)
		length(p, maxSecret, at, faults)
		if other := c.byPrincipal[p]; other != nil {
			faults.Add(at, "consumer %.80q has it, too", other.Name())
		}
		c.byPrincipal[p] = of
	}
	key := func(s sum, at string) {
		if other := c.byKey[s]; other != nil {
			faults.Add(at, "consumer %.80q has it, too", other.Name())
		}
		c.byKey[s] = of
	}
	for i, k := range from.GetKeys() {
		at := fmt.Sprintf("%s.keys[%d]", path, i)
		if length(k, maxSecret, at, faults) {
			key(digest([]byte(k)), at)
		}
	}
	for i, k := range from.GetKeySha256() {
		at := fmt.Sprintf("%s.key_sha256[%d]", path, i)
		if b, err := hex.DecodeString(k); err != nil || len(b) != sha256.Size {
			faults.Add(at, "must be %d hexadecimal digits", 2*sha256.Size)
		} else {
			key(salted(sum(b)), at)
		}
	}
	if known := len(from.GetKeys()) + len(from.GetKeySha256()); known > 0 && len(c.keyNames) == 0 {
		faults.Add("key_names", "required: %s has keys", path)
	} else if known+len(from.GetPrincipals()) == 0 {
		faults.Add(path, "has neither principals nor keys")
	}
}

// length refuses texts that are empty or too long.
func length(s string, most int, path string, faults *fields.Faults) (ok bool) {
	n := len(s)
	if ok = n >= 1 && n <= most; !ok {
		faults.Add(path, "must have 1 to %d bytes, has %d", most, n)
	}
	return ok
}

// removable tells whether one of the codecs can remove key from requests.
func removable(cs []codecs.Codec, key string) error {
	err := fmt.Errorf("the codec cannot remove what requests say")
	for _, c := range cs {
		if r, is := c.(codecs.Remover); is {
			if err = r.CheckRemoval(codecs.ClientToServer, key); err == nil {
				return nil
			}
		}
	}
	return err
}
