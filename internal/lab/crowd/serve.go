package crowd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
)

// Server feeds one node of a crowd as the API server does, without holding the crowd: an
// object is made when it is sent. It knows what vswitch asks for and nothing more: a
// watch that begins with all objects, in protobuf
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists), this
// node's own Node, and its annotations.
type Server struct {
	crowd *Crowd
	http  http.Server

	mu      sync.Mutex // guards the rest
	version uint64
	first   *corev1.Node
	changed map[string]*discoveryv1.EndpointSlice // those that are no longer as they were
	watches map[chan object]string                // with the resource that each is of
}

// firstVersion is that of all that has not changed.
const firstVersion = 1

// Serve answers on l until Close.
func Serve(c *Crowd, l net.Listener) *Server {
	s := &Server{crowd: c, version: firstVersion, first: unchanged(c.Node(0)), changed: map[string]*discoveryv1.EndpointSlice{}, watches: map[chan object]string{}}
	s.http.Handler = http.HandlerFunc(s.serve)
	go s.http.Serve(l)
	return s
}

// Close hangs up.
func (s *Server) Close() error { return s.http.Close() }

// watchBuffer is how many changes a client may fall behind.
const watchBuffer = 10_000

// Put replaces a slice, and tells who watches.
func (s *Server) Put(slice *discoveryv1.EndpointSlice) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed[slice.Namespace+"/"+slice.Name] = slice
	return s.tell("endpointslices", slice)
}

// tell gives an object its version and sends it to who watches. Callers hold mu.
func (s *Server) tell(resource string, o object) error {
	s.version++
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	for w, of := range s.watches {
		if of != resource {
			continue
		}
		select {
		case w <- o:
		default:
			return errors.New("crowd: a client does not read")
		}
	}
	return nil
}

// patch takes the annotations of a merge patch of the first node (RFC 7396).
func (s *Server) patch(body io.Reader) error {
	var change struct {
		Metadata struct{ Annotations map[string]*string }
	}
	if err := json.NewDecoder(body).Decode(&change); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = s.first.DeepCopy() // the one before may be on its way
	if s.first.Annotations == nil {
		s.first.Annotations = map[string]string{}
	}
	for k, v := range change.Metadata.Annotations {
		if delete(s.first.Annotations, k); v != nil {
			s.first.Annotations[k] = *v
		}
	}
	return s.tell("nodes", s.first)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch last := path[len(path)-1]; {
	case r.FormValue("watch") == "true":
		s.watch(w, r, last)
	case last == s.crowd.First || r.Method == http.MethodPatch:
		if r.Method == http.MethodPatch {
			if err := s.patch(r.Body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		s.mu.Lock()
		n := s.first
		s.mu.Unlock()
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		w.Write(encode(n))
	default:
		http.Error(w, "no such thing in a crowd", http.StatusNotFound)
	}
}

// watch sends all there is of a resource, and then what changes.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string) {
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	news := make(chan object, watchBuffer)
	s.mu.Lock()
	s.watches[news] = resource
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, news)
	}()
	for o := range s.of(resource) {
		if send(w, watch.Added, o) != nil {
			return
		}
	}
	if send(w, watch.Bookmark, s.end(resource)) != nil {
		return
	}
	for {
		if w.(http.Flusher).Flush(); r.Context().Err() != nil {
			return
		}
		select {
		case o := <-news:
			if send(w, watch.Modified, o) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// unchanged gives an object that was only just made the version of what has not changed.
func unchanged[T object](o T) T {
	o.SetResourceVersion(strconv.Itoa(firstVersion))
	return o
}

type object interface {
	runtime.Object
	metav1.Object
}

// of is what there is of a resource.
func (s *Server) of(resource string) iter.Seq[object] {
	c := s.crowd
	return func(yield func(object) bool) {
		switch resource {
		case "nodes":
			s.mu.Lock()
			first := s.first
			s.mu.Unlock()
			if !yield(first) {
				return
			}
			for i := 1; i < c.Nodes; i++ {
				if !yield(unchanged(c.Node(i))) {
					return
				}
			}
		case "services":
			for i := range c.AllServices() {
				if !yield(unchanged(c.Service(i))) {
					return
				}
			}
		case "endpointslices":
			for i := range c.AllServices() {
				for _, slice := range c.Slices(i, 0, made.Time) {
					unchanged(slice)
					s.mu.Lock()
					if is := s.changed[slice.Namespace+"/"+slice.Name]; is != nil {
						slice = is
					}
					s.mu.Unlock()
					if !yield(slice) {
						return
					}
				}
			}
		}
	}
}

// end says that all there is was sent.
func (s *Server) end(resource string) object {
	m := metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}, ResourceVersion: strconv.Itoa(firstVersion)}
	core := func(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }
	switch resource {
	case "nodes":
		return &corev1.Node{TypeMeta: core("Node"), ObjectMeta: m}
	case "services":
		return &corev1.Service{TypeMeta: core("Service"), ObjectMeta: m}
	case "endpointslices":
		return &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: m}
	}
	return &corev1.Pod{TypeMeta: core("Pod"), ObjectMeta: m}
}

// send writes an event as a frame of a protobuf stream: its length, then a WatchEvent.
func send(w io.Writer, t watch.EventType, o runtime.Object) error {
	event := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: encode(o)}}
	b, err := event.Marshal()
	if err != nil {
		return err
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// encode is an object as the API server sends and stores it.
func encode(o runtime.Object) []byte {
	var b bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(o, &b); err != nil {
		panic("crowd: " + err.Error()) // of the API's own types
	}
	return b.Bytes()
}
