package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// resources are those that the API server has, by their groups and versions, and their
// kinds. Those of the cluster end in !.
var resources = map[string]map[string]string{
	"v1":                              {"services": "Service", "configmaps": "ConfigMap", "events": "Event"},
	"discovery.k8s.io/v1":             {"endpointslices": "EndpointSlice"},
	"coordination.k8s.io/v1":          {"leases": "Lease"},
	"events.k8s.io/v1":                {"events": "Event"},
	"networking.istio.io/v1":          {"serviceentries": "ServiceEntry", "destinationrules": "DestinationRule", "gateways": "Gateway", "virtualservices": "VirtualService"},
	"networking.istio.io/v1alpha3":    {"envoyfilters": "EnvoyFilter"},
	"metaprotocol.aeraki.io/v1alpha1": {"metarouters": "MetaRouter", "applicationprotocols": "ApplicationProtocol!"},
	"dubbo.aeraki.io/v1alpha1":        {"dubboauthorizationpolicies": "DubboAuthorizationPolicy"},
}

// object is one as the API server has it.
type object = map[string]any

// apiServer is Kubernetes' in memory: what clients ask it by HTTP it does as the real one
// does, as far as the operator can tell. Server-side apply is by one manager only.
type apiServer struct {
	mu      sync.Mutex
	version int
	objects map[string]object // by the path of their resource, namespace/name
	past    []change
	expired int // what came before is forgotten
	changed chan struct{}
	down    bool

	// before is asked before a request that changes something is heard, and after when
	// it has been, with the lock held: an error is a connection that breaks.
	before, after func(q *http.Request) error
	reading       func(q *http.Request) // is asked before one that changes nothing is heard
	writes        []write
}

// write is one that has changed something: not of a lease.
type write struct {
	verb, path string
	bytes      int
	who        string
}

type change struct {
	version  int
	resource string
	kind     string // ADDED, MODIFIED, DELETED
	object   object
}

func newAPIServer() *apiServer {
	return &apiServer{objects: map[string]object{}, changed: make(chan struct{})}
}

// config is that of one of its clients.
func (a *apiServer) config(who string) *rest.Config {
	return &rest.Config{
		Host: "http://api", Transport: connection{a, who}, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON},
	}
}

// connection is that of a client, whose name its requests have as the user agent.
type connection struct {
	*apiServer
	who string
}

// RoundTrip implements http.RoundTripper.
func (c connection) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	q.Header.Set("User-Agent", c.who)
	a := c.apiServer
	var body []byte
	if q.Body != nil {
		body, _ = io.ReadAll(q.Body)
		q.Body.Close()
	}
	if err := q.Context().Err(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	before, reading := a.before, a.reading
	a.mu.Unlock()
	if reading != nil && q.Method == http.MethodGet {
		reading(q)
	}
	if before != nil && q.Method != http.MethodGet {
		if err := before(q); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return nil, errors.New("connection refused")
	}
	if q.URL.Query().Get("watch") == "true" {
		return a.watch(q)
	}
	code, answer := a.answer(q, body)
	if a.after != nil && q.Method != http.MethodGet && code < 300 {
		if err := a.after(q); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return response(q, code, io.NopCloser(bytes.NewReader(raw))), nil
}

// ServeHTTP implements http.Handler, for clients in other processes.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r, err := connection{a, q.UserAgent()}.RoundTrip(q)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer r.Body.Close()
	maps.Copy(w.Header(), r.Header)
	w.WriteHeader(r.StatusCode)
	buffer := make([]byte, 32<<10)
	for flush := http.NewResponseController(w); ; {
		n, err := r.Body.Read(buffer)
		if _, broken := w.Write(buffer[:n]); broken != nil || err != nil || flush.Flush() != nil {
			return
		}
	}
}

// ask has before be so from now on, while clients are at work.
func (a *apiServer) ask(before func(q *http.Request) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = before
}

func response(q *http.Request, code int, body io.ReadCloser) *http.Response {
	return &http.Response{
		StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: q,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: body,
	}
}

func failure(code int, reason metav1.StatusReason) (int, any) {
	return code, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": string(reason), "message": string(reason)}
}

// target is what a path means.
type target struct{ version, resource, kind, namespace, name, sub string }

func (t target) collection() string { return t.version + "/" + t.resource }

func (t target) key() string { return t.collection() + " " + t.namespace + "/" + t.name }

func parse(path string) (t target, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch parts[0] {
	case "api":
		t.version, parts = parts[1], parts[2:]
	case "apis":
		t.version, parts = parts[1]+"/"+parts[2], parts[3:]
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		t.namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	t.resource, t.name, t.sub = parts[0], parts[1], parts[2]
	t.kind = strings.TrimSuffix(resources[t.version][t.resource], "!")
	return t, t.kind != ""
}

func (a *apiServer) answer(q *http.Request, body []byte) (int, any) {
	switch path := strings.Trim(q.URL.Path, "/"); {
	case path == "api":
		return 200, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case path == "apis":
		return 200, groups()
	case strings.Count(path, "/") < 3 && resources[strings.TrimPrefix(strings.TrimPrefix(path, "api/"), "apis/")] != nil:
		return 200, resourcesOf(strings.TrimPrefix(strings.TrimPrefix(path, "api/"), "apis/"))
	}
	t, ok := parse(q.URL.Path)
	if !ok {
		return failure(404, metav1.StatusReasonNotFound)
	}
	var o object
	if len(body) > 0 {
		if err := json.Unmarshal(body, &o); err != nil {
			return failure(400, metav1.StatusReasonBadRequest)
		}
	}
	switch q.Method {
	case http.MethodGet:
		if t.name == "" {
			return 200, a.list(t, q)
		}
		if o := a.objects[t.key()]; o != nil {
			return 200, o
		}
		return failure(404, metav1.StatusReasonNotFound)
	case http.MethodPost:
		t.name = metaOf(o).name()
		if a.objects[t.key()] != nil {
			return failure(409, metav1.StatusReasonAlreadyExists)
		}
		return 201, a.store(t, q, len(body), o)
	case http.MethodDelete:
		return a.remove(t, q, o)
	}
	old := a.objects[t.key()]
	if old == nil && (q.Method == http.MethodPut || t.sub != "") {
		return failure(404, metav1.StatusReasonNotFound)
	}
	if v := metaOf(o).get("resourceVersion"); v != "" && (old == nil || v != metaOf(old).get("resourceVersion")) {
		return failure(409, metav1.StatusReasonConflict)
	}
	if old == nil {
		return 201, a.store(t, q, len(body), o)
	}
	next := maps.Clone(old)
	next["metadata"] = maps.Clone(old["metadata"].(object))
	if t.sub == "status" {
		next["status"] = o["status"]
	} else {
		for _, field := range []string{"labels", "annotations"} {
			all := object{}
			if q.Method == http.MethodPatch {
				maps.Copy(all, metaOf(old).fields(field))
			}
			maps.Copy(all, metaOf(o).fields(field))
			metaOf(next)[field] = all
		}
		metaOf(next)["ownerReferences"] = metaOf(o)["ownerReferences"]
		for k, v := range o {
			if k != "metadata" && k != "status" {
				next[k] = v
			}
		}
	}
	if equal(next, old) {
		return 200, old
	}
	return 200, a.store(t, q, len(body), next)
}

// equal: numbers of JSON are so by their values.
func equal(a, b any) bool {
	return reflect.DeepEqual(plain(a), plain(b))
}

func plain(v any) (p any) {
	raw, _ := json.Marshal(v)
	_ = json.Unmarshal(raw, &p)
	return drop(p)
}

// drop leaves out what is empty.
func drop(v any) any {
	if o, ok := v.(object); ok {
		for k, e := range o {
			switch e := drop(e).(type) {
			case nil:
				delete(o, k)
			case object:
				if len(e) == 0 {
					delete(o, k)
				}
			}
		}
	}
	return v
}

type metadata object

func metaOf(o object) metadata {
	if o["metadata"] == nil {
		o["metadata"] = object{}
	}
	return metadata(o["metadata"].(object))
}

func (m metadata) get(field string) string { s, _ := m[field].(string); return s }

func (m metadata) name() string { return m.get("name") }

func (m metadata) fields(field string) object { o, _ := m[field].(object); return o }

// store has an object be there.
func (a *apiServer) store(t target, q *http.Request, size int, o object) object {
	old := a.objects[t.key()]
	a.version++
	m := metaOf(o)
	m["name"] = t.name
	if t.namespace != "" {
		m["namespace"] = t.namespace
	}
	m["resourceVersion"] = strconv.Itoa(a.version)
	kind := "MODIFIED"
	if old == nil {
		kind = "ADDED"
		m["uid"] = fmt.Sprintf("uid-%d", a.version)
		m["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		m["generation"] = 1
	} else {
		n := metaOf(old)["generation"].(int)
		if !equal(old["spec"], o["spec"]) {
			n++
		}
		m["generation"], m["uid"], m["creationTimestamp"] = n, metaOf(old)["uid"], metaOf(old)["creationTimestamp"]
	}
	o["apiVersion"], o["kind"] = t.version, t.kind
	a.objects[t.key()] = o
	a.happened(t, q, size, change{a.version, t.collection(), kind, o})
	return o
}

func (a *apiServer) remove(t target, q *http.Request, options object) (int, any) {
	old := a.objects[t.key()]
	if old == nil {
		return failure(404, metav1.StatusReasonNotFound)
	}
	conditions, _ := options["preconditions"].(object)
	for field, want := range conditions {
		if metaOf(old).get(field) != want {
			return failure(409, metav1.StatusReasonConflict)
		}
	}
	delete(a.objects, t.key())
	a.version++
	last := maps.Clone(old)
	last["metadata"] = maps.Clone(old["metadata"].(object))
	metaOf(last)["resourceVersion"] = strconv.Itoa(a.version)
	a.happened(t, q, 0, change{a.version, t.collection(), "DELETED", last})
	for key, o := range a.objects { // the garbage collector
		refs, _ := metaOf(o)["ownerReferences"].([]any)
		if slices.ContainsFunc(refs, func(r any) bool { return r.(object)["uid"] == metaOf(old).get("uid") }) {
			path, name, _ := strings.Cut(key, " ")
			ns, name, _ := strings.Cut(name, "/")
			i := strings.LastIndexByte(path, '/')
			a.remove(target{version: path[:i], resource: path[i+1:], namespace: ns, name: name}, nil, nil)
		}
	}
	return 200, object{"kind": "Status", "apiVersion": "v1", "status": "Success"}
}

func (a *apiServer) happened(t target, q *http.Request, size int, c change) {
	a.past = append(a.past, c)
	close(a.changed)
	a.changed = make(chan struct{})
	if q != nil && t.resource != "leases" && t.resource != "events" {
		path := t.key()
		if t.sub != "" {
			path += "/" + t.sub
		}
		a.writes = append(a.writes, write{q.Method, path, size, q.UserAgent()})
	}
}

// selects tells whether a request is for an object, too.
func selects(q *http.Request, t target) func(o object) bool {
	l, _ := labels.Parse(q.URL.Query().Get("labelSelector"))
	f, _ := fields.ParseSelector(q.URL.Query().Get("fieldSelector"))
	return func(o object) bool {
		m := metaOf(o)
		set := labels.Set{}
		for k, v := range m.fields("labels") {
			set[k], _ = v.(string)
		}
		return (t.namespace == "" || t.namespace == m.get("namespace")) && l.Matches(set) &&
			f.Matches(fields.Set{"metadata.name": m.name(), "metadata.namespace": m.get("namespace")})
	}
}

func (a *apiServer) list(t target, q *http.Request) object {
	items, wanted := []any{}, selects(q, t)
	for key, o := range a.objects {
		if strings.HasPrefix(key, t.collection()+" ") && wanted(o) {
			items = append(items, o)
		}
	}
	return object{"apiVersion": t.version, "kind": t.kind + "List", "metadata": object{"resourceVersion": strconv.Itoa(a.version)}, "items": items}
}

// watch tells of what changes.
func (a *apiServer) watch(q *http.Request) (*http.Response, error) {
	t, _ := parse(q.URL.Path)
	from, wanted := 0, selects(q, t)
	r, w := io.Pipe()
	say := json.NewEncoder(w)
	tell := func(kind string, o any) bool { return say.Encode(object{"type": kind, "object": o}) == nil }
	var first []func() bool
	if q.URL.Query().Get("sendInitialEvents") == "true" {
		from = a.version
		for _, o := range a.list(t, q)["items"].([]any) {
			first = append(first, func() bool { return tell("ADDED", o) })
		}
		end := object{"apiVersion": t.version, "kind": t.kind, "metadata": object{
			"resourceVersion": strconv.Itoa(from), "annotations": object{metav1.InitialEventsAnnotationKey: "true"},
		}}
		first = append(first, func() bool { return tell("BOOKMARK", end) })
	} else {
		from, _ = strconv.Atoi(q.URL.Query().Get("resourceVersion"))
	}
	go func() {
		defer w.Close()
		for _, f := range first {
			if !f() {
				return
			}
		}
		known := map[string]bool{} // whether it is selected, of what has been told
		for at := from; ; {
			a.mu.Lock()
			var news []change
			if at < a.expired {
				a.mu.Unlock()
				_, gone := failure(410, metav1.StatusReasonExpired)
				tell("ERROR", gone)
				return
			}
			next, _ := slices.BinarySearchFunc(a.past, at+1, func(c change, v int) int { return c.version - v })
			for _, c := range a.past[next:] {
				if c.resource == t.collection() {
					news = append(news, c)
				}
			}
			at = a.version
			changed, down := a.changed, a.down
			a.mu.Unlock()
			if down {
				return
			}
			for _, c := range news {
				name := metaOf(c.object).get("namespace") + "/" + metaOf(c.object).name()
				kind := c.kind
				if !wanted(c.object) {
					if kind == "ADDED" || known[name] && kind == "DELETED" {
						continue
					}
					known[name], kind = true, "DELETED" // for who has selected
				} else {
					if known[name] && kind == "MODIFIED" {
						kind = "ADDED"
					}
					known[name] = false
				}
				if !tell(kind, c.object) {
					return
				}
			}
			select {
			case <-changed:
			case <-q.Context().Done():
				return
			}
		}
	}()
	return response(q, 200, r), nil
}

// forget has watches that go on from before now fail, and ends those that there are.
func (a *apiServer) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.expired, a.past = a.version, nil
	close(a.changed)
	a.changed = make(chan struct{})
}

// away has it be so, or not.
func (a *apiServer) away(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = away
	close(a.changed)
	a.changed = make(chan struct{})
}

func groups() metav1.APIGroupList {
	l := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, version := range slices.Sorted(maps.Keys(resources)) {
		group, v, ok := strings.Cut(version, "/")
		if !ok {
			continue
		}
		known := metav1.GroupVersionForDiscovery{GroupVersion: version, Version: v}
		if n := len(l.Groups); n > 0 && l.Groups[n-1].Name == group {
			l.Groups[n-1].Versions = append(l.Groups[n-1].Versions, known)
			continue
		}
		l.Groups = append(l.Groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{known}, PreferredVersion: known})
	}
	return l
}

func resourcesOf(version string) metav1.APIResourceList {
	l := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version}
	for name, kind := range resources[version] {
		kind, cluster := strings.CutSuffix(kind, "!")
		l.APIResources = append(l.APIResources, metav1.APIResource{Name: name, Kind: kind, Namespaced: !cluster, Verbs: metav1.Verbs{"get", "list", "watch"}})
	}
	return l
}

// user is one who says what shall be.
func (a *apiServer) user(t testing.TB) client.Client {
	t.Helper()
	scheme, err := Scheme()
	require.NoError(t, err)
	c, err := client.New(a.config("user"), client.Options{Scheme: scheme})
	require.NoError(t, err)
	return c
}

// put has there be an object as it is.
func (a *apiServer) put(t testing.TB, scheme *runtime.Scheme, o client.Object) {
	t.Helper()
	gvk, err := apiutil.GVKForObject(o, scheme)
	require.NoError(t, err)
	raw, err := json.Marshal(o)
	require.NoError(t, err)
	u := &unstructured.Unstructured{}
	require.NoError(t, json.Unmarshal(raw, &u.Object))
	version := gvk.GroupVersion().String()
	for name, kind := range resources[version] {
		if strings.TrimSuffix(kind, "!") == gvk.Kind {
			a.mu.Lock()
			delete(u.Object, "status")
			metaOf(u.Object)["creationTimestamp"] = nil
			a.store(target{version: version, resource: name, kind: gvk.Kind, namespace: o.GetNamespace(), name: o.GetName()}, nil, len(raw), u.Object)
			a.mu.Unlock()
			return
		}
	}
	t.Fatal("unknown kind", gvk)
}

// state is all that there is, but for what tells of when and how often it was written.
func (a *apiServer) state() map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[string]any{}
	for key, o := range a.objects {
		if strings.HasPrefix(key, "coordination.k8s.io/") || strings.Contains(key, "/events ") {
			continue
		}
		p := plain(o).(object)
		for _, field := range []string{"resourceVersion", "uid", "creationTimestamp", "generation"} {
			delete(metaOf(p), field)
		}
		refs, _ := metaOf(p)["ownerReferences"].([]any)
		for _, r := range refs {
			delete(r.(object), "uid")
		}
		s, _ := p["status"].(object)
		conditions, _ := s["conditions"].([]any)
		for _, c := range conditions {
			delete(c.(object), "lastTransitionTime")
			delete(c.(object), "observedGeneration")
		}
		all[key] = p
	}
	return all
}
