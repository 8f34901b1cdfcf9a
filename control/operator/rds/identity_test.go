package rds_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	var der []byte
	a.key, der = a.make(template, nil)
	var err error
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return a
}

func (a *authority) make(template, parent *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	// Virtual time begins in 2000.
	template.NotBefore, template.NotAfter = time.Unix(0, 0), time.Unix(1<<32, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	return key, der
}

// sign gives a certificate with URIs.
func (a *authority) sign(uris ...string) tls.Certificate {
	template := &x509.Certificate{SerialNumber: big.NewInt(2), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		require.NoError(a.t, err)
		template.URIs = append(template.URIs, parsed)
	}
	key, der := a.make(template, a.cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write has files be a server's certificate of the authority.
func (a *authority) write(f rds.Files) {
	c := a.sign("spiffe://cluster.local/ns/meltemi-system/sa/meltemi-operator")
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	require.NoError(a.t, err)
	for name, b := range map[string]*pem.Block{
		f.Certificate: {Type: "CERTIFICATE", Bytes: c.Certificate[0]},
		f.Key:         {Type: "PRIVATE KEY", Bytes: key},
		f.Roots:       {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		require.NoError(a.t, os.WriteFile(name, pem.EncodeToMemory(b), 0o600))
	}
}

func files(t *testing.T) rds.Files {
	dir := t.TempDir()
	return rds.Files{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), Roots: filepath.Join(dir, "roots.pem")}
}

// secure dials as a proxy's cluster does, with a certificate or without.
type secure struct {
	*bed
	certificates []tls.Certificate
}

// DialCluster implements host.Background.
func (s secure) DialCluster(ctx context.Context, cluster string) (net.Conn, error) {
	c, err := s.bed.DialCluster(ctx, cluster)
	if err != nil {
		return nil, err
	}
	// As Istio says of a cluster with HTTP/2.
	return tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: s.certificates, NextProtos: []string{"istio", "h2"}}), nil
}

var _ host.Background = secure{}

const inDemo = "spiffe://cluster.local/ns/demo/sa/default"

// A proxy gets what its namespace may have, and only with an identity of the mesh.
func TestNamesAreForThoseWhoMayHaveThem(t *testing.T) {
	ca, f := newAuthority(t), files(t)
	ca.write(f)
	credentials := rds.NewCredentials(f, logr.Discard())
	virtually(t, rds.Options{Credentials: credentials, TrustDomain: "cluster.local"}, func(b *bed) {
		as := func(ca *authority, uris ...string) secure { return secure{b, []tls.Certificate{ca.sign(uris...)}} }
		b.put("all", "one")
		b.put("demo", "one", "demo", "gateways")
		b.put("none", "one", "other")
		for name, c := range map[string]struct {
			as       host.Background
			all, own string
		}{
			"a namespace that may":       {as(ca, inDemo), "one", "one"},
			"one that may not":           {as(ca, "spiffe://cluster.local/ns/shop/sa/demo"), "one", ""},
			"another trust domain":       {as(ca, "spiffe://elsewhere/ns/demo/sa/default"), "", ""},
			"no identity":                {as(ca), "", ""},
			"two identities":             {as(ca, inDemo, "spiffe://cluster.local/ns/other/sa/x"), "", ""},
			"an identity that is no pod": {as(ca, "spiffe://cluster.local/demo"), "", ""},
			"another authority":          {as(newAuthority(t), inDemo), "", ""},
			"no certificate":             {secure{bed: b}, "", ""},
			"no TLS":                     {b, "", ""},
		} {
			all, own, none := b.proxy("all", name, deltaOwn, c.as), b.proxy("demo", name, deltaOwn, c.as), b.proxy("none", name, deltaOwn, c.as)
			synctest.Wait()
			require.Equal(t, c.all, all.to(), name)
			require.Equal(t, c.own, own.to(), name)
			require.Empty(t, none.to(), name)
		}
		for _, s := range b.server.States("demo") {
			require.Equal(t, s.Node == "a namespace that may", s.Accepted != "", s)
		}
		// Whose namespace may have it later gets it then, and whose may no longer nothing more.
		late := b.proxy("none", "late", deltaOwn, as(ca, inDemo))
		b.put("none", "one", "demo")
		require.Equal(t, "one", late.to())
		b.put("none", "two", "other")
		require.Equal(t, "one", late.to())
	})
}

// New files count from the next connection on; those that cannot be used leave the ones
// before.
func TestCredentialsAreReadAgain(t *testing.T) {
	f := files(t)
	credentials := rds.NewCredentials(f, logr.Discard())
	require.ErrorContains(t, credentials.Ready(), f.Certificate)
	before, after := newAuthority(t), newAuthority(t)
	before.write(f)
	require.NoError(t, credentials.Ready())
	virtually(t, rds.Options{Credentials: credentials}, func(b *bed) {
		b.put("a", "one")
		to := func(ca *authority) string {
			u := b.proxy("a", "pod", deltaOwn, secure{b, []tls.Certificate{ca.sign(inDemo)}})
			synctest.Wait()
			return u.to()
		}
		require.Equal(t, "one", to(before))
		require.Empty(t, to(after))
		require.NoError(t, os.WriteFile(f.Key, []byte("half of a"), 0o600))
		require.Equal(t, "one", to(before))
		require.Equal(t, "one", to(before))
		after.write(f)
		require.Equal(t, "one", to(after))
		require.Empty(t, to(before))
		require.NoError(t, os.Remove(f.Roots))
		require.Equal(t, "one", to(after))
	})
}
