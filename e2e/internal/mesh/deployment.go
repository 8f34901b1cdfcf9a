package mesh

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Deployment is one that the API server has. A test is its controller and its kubelet: a
// pod of it runs, in a file system that it may only read, as its template says.
type Deployment struct {
	Netns
	Image Image

	m               *Mesh
	t               testing.TB
	namespace, name string
	template        podTemplate
	p               *process
	number          int
}

// podTemplate is what is heeded of one.
type podTemplate struct {
	Spec struct {
		ServiceAccountName           string
		AutomountServiceAccountToken bool
		SecurityContext              struct {
			RunAsNonRoot          bool
			RunAsUser, RunAsGroup uint32
		}
		Containers []struct {
			Command, Args []string
			Env           []struct {
				Name, Value string
				ValueFrom   struct{ FieldRef struct{ FieldPath string } }
			}
			Ports []struct {
				Name          string
				ContainerPort int
			}
			LivenessProbe, ReadinessProbe struct {
				HTTPGet struct{ Path, Port string }
			}
			SecurityContext struct {
				ReadOnlyRootFilesystem, AllowPrivilegeEscalation bool
			}
			VolumeMounts []struct{ Name, MountPath string }
		}
		Volumes []struct {
			Name   string
			Secret *struct{ SecretName string }
		}
	}
}

// Deployment is the one of that name, which must be there when it is started. What runs of
// it ends with the test.
func (m *Mesh) Deployment(t testing.TB, namespace, name string, image Image) *Deployment {
	t.Helper()
	netns, err := m.fabric.add()
	require.NoError(t, err)
	d := &Deployment{Netns: netns, Image: image, m: m, t: t, namespace: namespace, name: name}
	t.Cleanup(func() {
		if d.p != nil {
			if d.p.died() {
				t.Errorf("%s died: %v", name, d.p.cmd.ProcessState)
			}
			if t.Failed() {
				t.Logf("end of the log of %s:\n%s", name, d.p.tail())
			}
			d.p.kill()
		}
		require.NoError(t, m.fabric.remove(netns))
	})
	return d
}

// Start starts a pod, and returns when it is ready.
func (d *Deployment) Start() {
	t := d.t
	t.Helper()
	require.True(t, d.p == nil || d.p.ending.Load(), "one pod at a time")
	d.number++
	out, err := d.m.Kubectl("", "get", "deployment", d.name, "-n", d.namespace, "-o", "jsonpath={.spec.template}")
	require.NoError(t, err)
	d.template = podTemplate{}
	require.NoError(t, json.Unmarshal([]byte(out), &d.template))
	spec := d.template.Spec
	require.Len(t, spec.Containers, 1)
	c, sec := spec.Containers[0], spec.SecurityContext
	// Nothing else is done here.
	require.True(t, spec.AutomountServiceAccountToken && sec.RunAsNonRoot && c.SecurityContext.ReadOnlyRootFilesystem && !c.SecurityContext.AllowPrivilegeEscalation)
	if sec.RunAsUser == 0 {
		sec.RunAsUser, sec.RunAsGroup = 1000680000, 0 // as OpenShift chooses one
	}

	p := program{
		name: d.name, netns: d.Netns, dir: d.m.path(fmt.Sprintf("%s-%d", d.ID, d.number)), log: d.m.path(fmt.Sprintf("%s-%d.log", d.ID, d.number)), init: true,
		env: append([]string{"KUBERNETES_SERVICE_HOST=" + d.m.fabric.node.IP, "KUBERNETES_SERVICE_PORT=6443"}, d.Image.Env...),
	}
	for _, e := range c.Env {
		switch e.ValueFrom.FieldRef.FieldPath {
		case "":
		case "metadata.namespace":
			e.Value = d.namespace
		default:
			t.Fatalf("a kubelet would know %s", e.ValueFrom.FieldRef.FieldPath)
		}
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	p.argv = append(p.argv, d.Image.Entrypoint...)
	if c.Command != nil {
		p.argv = append([]string(nil), c.Command...)
	}
	p.argv = append(p.argv, c.Args...)

	const account = "var/run/secrets/kubernetes.io/serviceaccount"
	token, err := d.m.Kubectl("", "create", "token", spec.ServiceAccountName, "-n", d.namespace)
	require.NoError(t, err)
	ca, err := os.ReadFile(d.m.path("ca.crt"))
	require.NoError(t, err)
	files := map[string]string{account + "/token": token, account + "/ca.crt": string(ca), account + "/namespace": d.namespace}
	mounts := []string{account}
	for _, v := range spec.Volumes {
		require.NotNil(t, v.Secret, v.Name)
		for _, at := range c.VolumeMounts {
			if at.Name == v.Name {
				mounts = append(mounts, strings.TrimPrefix(at.MountPath, "/"))
				for name, value := range d.secret(v.Secret.SecretName) {
					files[filepath.Join(at.MountPath, name)] = string(value)
				}
			}
		}
	}
	for name, text := range files {
		name = filepath.Join(p.dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	}
	p.contain(d.Image.Root, sec.RunAsUser, sec.RunAsGroup, mounts...)
	d.p, err = p.start()
	require.NoError(t, err)
	require.NoError(t, d.p.until("ready", func() bool {
		_, err := d.probe(c.ReadinessProbe.HTTPGet.Port, c.ReadinessProbe.HTTPGet.Path)
		return err == nil
	}))
	_, err = d.probe(c.LivenessProbe.HTTPGet.Port, c.LivenessProbe.HTTPGet.Path)
	require.NoError(t, err)
}

func (d *Deployment) secret(name string) (data map[string][]byte) {
	out, err := d.m.Kubectl("", "get", "secret", name, "-n", d.namespace, "-o", "jsonpath={.data}")
	require.NoError(d.t, err)
	require.NoError(d.t, json.Unmarshal([]byte(out), &data))
	return data
}

// probe gets a page at a port of that name, from the node.
func (d *Deployment) probe(port, path string) (string, error) {
	addr := d.Address(port)
	if addr == "" {
		return "", fmt.Errorf("no port %s", port)
	}
	return d.m.fabric.node.Get("http://" + addr + path)
}

// Address is that of a port by its name; "": the template has none of it.
func (d *Deployment) Address(port string) string {
	for _, p := range d.template.Spec.Containers[0].Ports {
		if p.Name == port {
			return net.JoinHostPort(d.IP, strconv.Itoa(p.ContainerPort))
		}
	}
	return ""
}

// Metrics are what Prometheus would be told.
func (d *Deployment) Metrics() string {
	d.t.Helper()
	body, err := d.probe("http-metrics", "/metrics")
	require.NoError(d.t, err)
	return body
}

// Stop ends the pod as a kubelet does.
func (d *Deployment) Stop() {
	d.t.Helper()
	require.False(d.t, d.p.died(), d.p.tail())
	require.NoError(d.t, d.p.terminate())
	require.Zero(d.t, d.p.cmd.ProcessState.ExitCode(), d.p.tail())
}

// Log is what the pod has logged since it was started.
func (d *Deployment) Log() string { return d.p.output() }
