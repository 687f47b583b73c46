// Package kubetest is an API server of Kubernetes' for tests: lists and watches in
// JSON with resource versions, merge patches and creation, and everything that goes
// wrong between a server and its clients, when a test says so. It checks nothing of
// what it is given.
package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// Object is one as JSON has it.
type Object = map[string]any

// kinds of the resources served, by path.
var kinds = map[string]struct{ path, apiVersion, kind string }{
	"nodes":          {"/api/v1/", "v1", "Node"},
	"pods":           {"/api/v1/", "v1", "Pod"},
	"services":       {"/api/v1/", "v1", "Service"},
	"events":         {"/api/v1/", "v1", "Event"},
	"endpointslices": {"/apis/discovery.k8s.io/v1/", "discovery.k8s.io/v1", "EndpointSlice"},
}

// event is a change; object is nil after a deletion, was before a creation.
type event struct {
	version     uint64
	resource    string
	was, object Object
}

// Server is the API server. Its methods may be called from any goroutine.
type Server struct {
	addr string
	http *http.Server // New's, then Stop's and Start's, who don't meet

	served sync.WaitGroup

	mu       sync.Mutex // guards all below
	changed  *sync.Cond // when something happened that a watch may wait for
	version  uint64
	objects  map[string]map[string]Object // by resource, then namespace/name
	log      []event
	forgot   uint64          // events up to this version are no longer known
	epoch    int             // watches of former ones end
	empty    map[string]bool // resources whose lists come empty
	noStream bool            // lists can't be streamed, as before Kubernetes 1.32
	requests map[string]int  // "VERB resource"
	garble   func(Object) []Object
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{objects: map[string]map[string]Object{}, empty: map[string]bool{}, requests: map[string]int{}}
	s.changed = sync.NewCond(&s.mu)
	for r := range kinds {
		s.objects[r] = map[string]Object{}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.listen(l)
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) listen(l net.Listener) {
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve)}
	s.served.Add(1)
	go func(h *http.Server) {
		defer s.served.Done()
		h.Serve(l)
	}(s.http)
}

// URL is where the server answers.
func (s *Server) URL() string { return "http://" + s.addr }

func (s *Server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changed.Broadcast()
}

// Put creates or replaces an object, given as anything that is one in JSON, and
// returns its version.
func (s *Server) Put(resource string, obj any) (version uint64) {
	text, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	var o Object
	if err := json.Unmarshal(text, &o); err != nil {
		panic(err)
	}
	s.do(func() { version = s.put(resource, o) })
	return version
}

func (s *Server) put(resource string, o Object) uint64 {
	k := kinds[resource]
	o["apiVersion"], o["kind"] = k.apiVersion, k.kind
	key := keyOf(o)
	was := s.objects[resource][key]
	m := metaOf(o)
	if was != nil {
		m["uid"], m["creationTimestamp"] = metaOf(was)["uid"], metaOf(was)["creationTimestamp"]
	} else if m["uid"] == nil {
		m["uid"] = fmt.Sprintf("uid-%d", s.version+1)
	}
	s.version++
	m["resourceVersion"] = strconv.FormatUint(s.version, 10)
	s.objects[resource][key] = o
	s.log = append(s.log, event{s.version, resource, was, o})
	return s.version
}

// Delete removes an object; one that is not there is no error.
func (s *Server) Delete(resource, namespace, name string) {
	s.do(func() {
		key := namespace + "/" + name
		was := s.objects[resource][key]
		if was == nil {
			return
		}
		delete(s.objects[resource], key)
		s.version++
		s.log = append(s.log, event{s.version, resource, was, nil})
	})
}

// Get is an object as it is now; nil: there is none.
func (s *Server) Get(resource, namespace, name string) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[resource][namespace+"/"+name]
}

// All are the objects of a resource.
func (s *Server) All(resource string) []Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.objects[resource]))
}

// Requests is how often a verb was used on a resource: list, watch, get, patch, create.
func (s *Server) Requests(verb, resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[verb+" "+resource]
}

// Asked are all the verbs used, as "VERB resource", sorted.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.requests))
}

// Forget loses the history of events: a watch from before is answered 410 Gone.
func (s *Server) Forget() { s.do(func() { s.forgot, s.log = s.version, nil }) }

// Disconnect ends every watch.
func (s *Server) Disconnect() { s.do(func() { s.epoch++ }) }

// Stop and Start take the server away and bring it back. It keeps what it holds.
func (s *Server) Stop() {
	s.Disconnect()
	s.http.Close()
	s.served.Wait()
}

// Start undoes Stop, at the same address.
func (s *Server) Start() {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		panic(err)
	}
	s.listen(l)
}

// Empty makes lists of a resource come empty, or no longer.
func (s *Server) Empty(resource string, empty bool) { s.do(func() { s.empty[resource] = empty }) }

// NoStreaming makes a list that is asked for as a stream an error, as it was before
// Kubernetes 1.32.
func (s *Server) NoStreaming() { s.do(func() { s.noStream = true }) }

// Garble has watches send what f makes of an object that was put, in its place: the
// same more than once, or something older with it. Nil: no more.
func (s *Server) Garble(f func(Object) []Object) { s.do(func() { s.garble = f }) }

func metaOf(o Object) map[string]any {
	m, ok := o["metadata"].(map[string]any)
	if !ok {
		m = map[string]any{}
		o["metadata"] = m
	}
	return m
}

func text(m map[string]any, key string) string { s, _ := m[key].(string); return s }

func keyOf(o Object) string { m := metaOf(o); return text(m, "namespace") + "/" + text(m, "name") }

// selects is what a request's selectors ask for.
type selects struct {
	node   string // spec.nodeName
	labels labels.Selector
}

func selectsOf(r *http.Request) (selects, error) {
	var out selects
	var err error
	if out.labels, err = labels.Parse(r.FormValue("labelSelector")); err != nil {
		return out, err
	}
	if f := r.FormValue("fieldSelector"); f != "" {
		node, ok := strings.CutPrefix(f, "spec.nodeName=")
		if !ok {
			return out, fmt.Errorf("field selector %q", f)
		}
		out.node = node
	}
	return out, nil
}

func (s *selects) match(o Object) bool {
	if o == nil {
		return false
	}
	if s.node != "" {
		spec, _ := o["spec"].(map[string]any)
		if text(spec, "nodeName") != s.node {
			return false
		}
	}
	set := labels.Set{}
	if has, ok := metaOf(o)["labels"].(map[string]any); ok {
		for k := range has {
			set[k] = text(has, k)
		}
	}
	return s.labels.Matches(set)
}
