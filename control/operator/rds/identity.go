package rds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Identity is who a proxy is by its certificate: the mesh's
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT. Without TLS it is empty.
type Identity struct {
	TrustDomain, Namespace, ServiceAccount string
}

func (i Identity) String() string {
	if i == (Identity{}) {
		return ""
	}
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// may tells whether proxies of these namespaces are meant to have what it may have. Who
// has not said who it is may have all: without TLS nothing it says of itself is worth
// more.
func (i Identity) may(namespaces []string) bool {
	return namespaces == nil || i == (Identity{}) || slices.Contains(namespaces, i.Namespace)
}

// parseIdentity reads one.
func parseIdentity(u *url.URL) (i Identity, ok bool) {
	parts := strings.Split(u.Path, "/")
	if u.Scheme != "spiffe" || u.Host == "" || len(parts) != 5 || parts[0] != "" || parts[1] != "ns" || parts[2] == "" || parts[3] != "sa" || parts[4] == "" {
		return i, false
	}
	return Identity{u.Host, parts[2], parts[4]}, true
}

// identify tells who is at the other end of a stream. domain is the one that it must be
// of; "": any that the roots vouch for.
func identify(ctx context.Context, domain string) (Identity, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil || p.AuthInfo == nil {
		return Identity{}, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}, nil
	}
	if len(info.State.VerifiedChains) == 0 {
		return Identity{}, status.Error(codes.Unauthenticated, "no certificate")
	}
	uris := info.State.VerifiedChains[0][0].URIs
	if len(uris) != 1 { // as SPIFFE wants it
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate has %d URIs, want one", len(uris))
	}
	i, ok := parseIdentity(uris[0])
	if !ok {
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate is of %s, want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", uris[0])
	}
	if domain != "" && i.TrustDomain != domain {
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate is of trust domain %s, want %s", i.TrustDomain, domain)
	}
	return i, nil
}

// Files are where the server's certificate is, its key, and the roots of its clients'
// certificates, in PEM.
type Files struct{ Certificate, Key, Roots string }

// Credentials has each client show a certificate of the roots. The files are read for
// each handshake, so that a new certificate counts at once. While they cannot be read,
// or do not belong together, the last that could counts.
func (f Files) Credentials(log logr.Logger) (credentials.TransportCredentials, error) {
	k := &keeper{files: f, log: log}
	if _, err := k.config(); err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return k.config()
		},
	}), nil
}

// keeper holds the last configuration that could be made.
type keeper struct {
	files Files
	log   logr.Logger

	mu   sync.Mutex
	seen [3]string // what it was made of, or could not be
	last *tls.Config
}

func (k *keeper) config() (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var seen [3]string
	for i, name := range []string{k.files.Certificate, k.files.Key, k.files.Roots} {
		b, err := os.ReadFile(name)
		if err != nil {
			return k.instead(err)
		}
		seen[i] = string(b)
	}
	if seen == k.seen {
		return k.instead(nil)
	}
	k.seen = seen
	certificate, err := tls.X509KeyPair([]byte(seen[0]), []byte(seen[1]))
	if err != nil {
		return k.instead(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(seen[2])) {
		return k.instead(fmt.Errorf("%s: no certificate", k.files.Roots))
	}
	k.last = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}
	return k.last, nil
}

// instead is the last configuration, as there is no newer one, for a reason or without.
func (k *keeper) instead(err error) (*tls.Config, error) {
	switch {
	case err == nil && k.last != nil:
	case err == nil:
		err = errors.New("the credentials cannot be used")
	case k.last != nil:
		k.log.Error(err, "going on with the credentials before")
	}
	if k.last == nil {
		return nil, err
	}
	return k.last, nil
}
