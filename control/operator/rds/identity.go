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

// identityOf reads that of a certificate.
func identityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 { // as SPIFFE wants it
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate has %d URIs, want one", len(c.URIs))
	}
	i, ok := parseIdentity(c.URIs[0])
	if !ok {
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate is of %s, want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", c.URIs[0])
	}
	return i, nil
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
	i, err := identityOf(info.State.VerifiedChains[0][0])
	if err != nil {
		return i, err
	}
	if domain != "" && i.TrustDomain != domain {
		return Identity{}, status.Errorf(codes.PermissionDenied, "the certificate is of trust domain %s, want %s", i.TrustDomain, domain)
	}
	return i, nil
}

// Files are where the server's certificate is, its key, and the roots of its clients'
// certificates, in PEM.
type Files struct{ Certificate, Key, Roots string }

// Credentials are a replica's: a certificate, and the roots of all others. The files are
// read for each handshake, so that a new certificate counts at once. While they cannot be
// read, or do not belong together, the last that could counts.
type Credentials struct{ keeper keeper }

// NewCredentials returns those of some files, which need not be there yet.
func NewCredentials(f Files, log logr.Logger) *Credentials {
	return &Credentials{keeper{files: f, log: log}}
}

// Ready tells why there are none.
func (c *Credentials) Ready() error {
	_, err := c.keeper.config()
	return err
}

// server has each client show a certificate of the roots.
func (c *Credentials) server() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.keeper.config()
		},
	})
}

// client is for connections to other replicas: those of the same identity.
func (c *Credentials) client() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			config, err := c.keeper.config()
			if err != nil {
				return nil, err
			}
			return &config.Certificates[0], nil
		},
		// Certificates of the mesh have no host names. VerifyConnection looks at what they
		// have instead.
		InsecureSkipVerify: true, //nolint:gosec // as it says
		VerifyConnection:   c.verify,
	})
}

// verify wants a replica at the other end.
func (c *Credentials) verify(state tls.ConnectionState) error {
	config, err := c.keeper.config()
	if err != nil {
		return err
	}
	others := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		others.AddCert(cert)
	}
	if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: config.ClientCAs, Intermediates: others}); err != nil {
		return err
	}
	own, err := c.identity()
	if err != nil {
		return err
	}
	if peer, err := identityOf(state.PeerCertificates[0]); err != nil || peer != own {
		return fmt.Errorf("the server is not %s", own)
	}
	return nil
}

// identity is the own one.
func (c *Credentials) identity() (Identity, error) {
	config, err := c.keeper.config()
	if err != nil {
		return Identity{}, err
	}
	return identityOf(config.Certificates[0].Leaf)
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
