package mesh

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Client speaks with the API server as an administrator's program does: without kubectl,
// and by a connection that stays.
type Client struct {
	http http.Client
	base string
}

// Client returns one.
func (m *Mesh) Client() (*Client, error) {
	ca, err := os.ReadFile(m.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &Client{
		base: "https://" + m.fabric.node.IP + ":6443",
		http: http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			DialContext: m.fabric.node.dialContext, TLSClientConfig: &tls.Config{RootCAs: roots},
		}},
	}, nil
}

// Apply applies an object, which has a path such as /apis/GROUP/VERSION/namespaces/NS/KINDS/NAME,
// on the server's side.
func (c *Client) Apply(path, yaml string) error {
	q, err := http.NewRequest(http.MethodPatch, c.base+path+"?fieldManager=client&force=true", strings.NewReader(yaml))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/apply-patch+yaml")
	q.Header.Set("Authorization", "Bearer "+token)
	r, err := c.http.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s: %s", path, r.Status, b)
	}
	return err
}
