package kube

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"pgregory.net/rapid"

	"vswitch/control"
)

// told is a sink that adds up what it is told.
type told struct {
	objs   map[control.Key]control.Object
	resets int
}

func (s *told) Reset(all []control.Object) {
	s.resets++
	s.objs = map[control.Key]control.Object{}
	for _, o := range all {
		s.objs[control.KeyOf(o)] = o
	}
}

func (s *told) Update(puts []control.Object, deletes []control.Key) {
	for _, o := range puts {
		s.objs[control.KeyOf(o)] = o
	}
	for _, k := range deletes {
		delete(s.objs, k)
	}
}

func (s *told) Reachable(bool) {}

// newTold is a source without a server whose kinds but services have all been listed.
func newTold(t interface{ Fatal(...any) }, known func(control.Kind) []control.Object) (*Source, *mirror, *told) {
	s, err := New(Config{APIServer: "http://192.0.2.1:1", Node: "here", Known: known, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	sink := &told{}
	s.sink = sink
	for kind, m := range s.mirrors {
		if kind != control.KindService {
			m.Replace(nil, "1")
		}
	}
	return s, s.mirrors[control.KindService], sink
}

func serviceAt(name string, version uint64, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: strconv.FormatUint(version, 10)},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{ip}},
	}
}

// event of a server's log; gone: the object was deleted.
type logged struct {
	object *corev1.Service
	gone   bool
}

// Whatever becomes of the events on their way, once the last has come a sink holds
// what a fresh list would give it (case 55: tombstones too). Events come late, out of
// order, and more than once; lists come in between, some of them stale and followed by
// the events since.
func TestScrambledEventsEndInTheStateOfAFreshList(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, m, sink := newTold(rt, nil)
		s.cfg.Grace = time.Nanosecond // this is not about doubt
		now := time.Unix(0, 0)
		last := uint64(10) // version of the server
		server := map[string]*corev1.Service{}
		var log []logged
		states := map[uint64]map[string]*corev1.Service{last: {}}
		list := func(at uint64) {
			fresh := map[control.Key]control.Object{}
			for _, o := range states[at] {
				fresh[control.KeyOf(o)] = o
			}
			m.replace(fresh, at, now)
		}
		list(last)
		deliver := func(e logged) {
			switch {
			case e.gone && rapid.Bool().Draw(rt, "tombstone"):
				m.Delete(cache.DeletedFinalStateUnknown{Key: e.object.Name, Obj: e.object})
			case e.gone:
				m.Delete(e.object)
			default:
				m.Add(e.object)
			}
		}
		sent := 0 // events of the log that have been delivered, at least once
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"put", "put", "put", "delete", "deliver", "deliver", "list", "stale list"}).Draw(rt, "step") {
			case "put":
				last++
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "name")
				o := serviceAt(name, last, fmt.Sprintf("10.96.0.%d", last%250))
				server[name] = o
				log = append(log, logged{object: o})
			case "delete":
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "name")
				if server[name] == nil {
					continue
				}
				last++
				o := serviceAt(name, last, server[name].Spec.ClusterIPs[0])
				delete(server, name)
				log = append(log, logged{o, true})
			case "deliver":
				window := slices.Clone(log[sent:])
				repeats := log[max(0, sent-5):sent]
				window = append(window, repeats...)
				for _, e := range rapid.Permutation(window).Draw(rt, "order") {
					deliver(e)
				}
				sent = len(log)
			case "list":
				list(last)
				sent = len(log)
			case "stale list":
				at := rapid.SampledFrom(slices.Sorted(maps.Keys(states))).Draw(rt, "version")
				list(at)
				sent = slices.IndexFunc(log, func(e logged) bool { return version(e.object) > at })
				if sent < 0 {
					sent = len(log)
				}
			}
			states[last] = maps.Clone(server)
			now = now.Add(time.Second)
			s.believeUntil(now)
		}
		for _, e := range log[sent:] {
			deliver(e)
		}
		s.believeUntil(now.Add(time.Hour))
		want := map[control.Key]string{}
		for _, o := range server {
			want[control.KeyOf(o)] = o.ResourceVersion + o.Spec.ClusterIPs[0]
		}
		got := map[control.Key]string{}
		for k, o := range sink.objs {
			got[k] = o.GetResourceVersion() + o.(*corev1.Service).Spec.ClusterIPs[0]
		}
		if !maps.Equal(got, want) {
			rt.Fatalf("the sink holds %v, a fresh list %v", got, want)
		}
		if sink.resets != 1 {
			rt.Fatalf("%d full lists told, want one: the rest are changes", sink.resets)
		}
	})
}

// Nothing is told before every kind has been listed.
func TestNothingIsToldBeforeAllIsListed(t *testing.T) {
	s, m, sink := newTold(t, nil)
	if sink.resets != 0 {
		t.Fatal("told before services were listed")
	}
	m.Add(serviceAt("early", 5, "10.96.0.1"))
	if len(sink.objs) != 0 {
		t.Fatal("told of an event before all was listed")
	}
	m.Replace([]any{serviceAt("early", 5, "10.96.0.1"), serviceAt("web", 7, "10.96.0.2")}, "7")
	if sink.resets != 1 || len(sink.objs) != 2 || len(s.mirrors) != 4 {
		t.Fatalf("%d lists, %v", sink.resets, sink.objs)
	}
}

// Case 58: a list that lacks more than half is not believed at once, nor the first one
// after a start; what comes back meanwhile was never away, and the rest goes when the
// grace is over. A list that lacks less is believed.
func TestAnEmptyListIsDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var before []control.Object
		for _, name := range []string{"a", "b", "c", "d"} {
			before = append(before, serviceAt(name, 5, "10.96.0.1"))
		}
		s, m, sink := newTold(t, func(k control.Kind) []control.Object {
			if k == control.KindService {
				return before
			}
			return nil
		})
		go s.believe(t.Context())
		names := func() string {
			s.mu.Lock()
			defer s.mu.Unlock()
			var out []string
			for k := range sink.objs {
				out = append(out, k.Name)
			}
			slices.Sort(out)
			return fmt.Sprint(out)
		}
		step := func(what, want string) {
			t.Helper()
			synctest.Wait()
			if got := names(); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		m.Replace(nil, "9")
		step("an empty list after a start", "[a b c d]")
		time.Sleep(10 * time.Second)
		m.Add(serviceAt("a", 12, "10.96.0.1"))
		time.Sleep(10 * time.Second)
		m.Replace([]any{serviceAt("a", 12, "10.96.0.1")}, "13")
		step("doubted twice, the first time counts", "[a b c d]")
		time.Sleep(11 * time.Second)
		step("the grace is over", "[a]")
		m.Replace([]any{serviceAt("a", 12, "10.96.0.1"), serviceAt("b", 20, "10.96.0.1"), serviceAt("c", 20, "10.96.0.1")}, "21")
		m.Replace([]any{serviceAt("a", 12, "10.96.0.1"), serviceAt("b", 20, "10.96.0.1")}, "22")
		step("a list that lacks one of three", "[a b]")
		m.Delete(serviceAt("a", 23, "10.96.0.1"))
		m.Delete(serviceAt("b", 24, "10.96.0.1"))
		step("deletions that were asked for", "[]")
	})
}

// Slices are held as records of their own, for which all of the above is as true: what
// says the same in another version is not told, what is of before is not heard, and what
// was known before the start is not told again as long as it stays.
func TestASliceIsToldWhenItSaysSomethingElse(t *testing.T) {
	at := func(version uint64, addr string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: "web-1", ResourceVersion: strconv.FormatUint(version, 10), Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
			},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{addr}}},
		}
	}
	s, services, sink := newTold(t, func(k control.Kind) []control.Object {
		if k == control.KindEndpointSlice {
			return []control.Object{control.NewSlice(at(1, "192.0.2.1"), false)}
		}
		return nil
	})
	m := s.mirrors[control.KindEndpointSlice]
	m.Replace([]any{at(2, "192.0.2.1")}, "2")
	services.Replace(nil, "2")
	key := control.KeyOf(at(1, ""))
	for _, step := range []struct {
		name string
		do   func() error
		want string // told; "gone"; empty: nothing
	}{
		{"the same in another version", func() error { return m.Add(at(5, "192.0.2.1")) }, ""},
		{"another address", func() error { return m.Update(at(6, "192.0.2.2")) }, "192.0.2.2"},
		{"that of before, late", func() error { return m.Update(at(5, "192.0.2.1")) }, ""},
		{"a list with the same", func() error { return m.Replace([]any{at(7, "192.0.2.2")}, "8") }, ""},
		{"a list with another", func() error { return m.Replace([]any{at(9, "192.0.2.3")}, "10") }, "192.0.2.3"},
		{"a deletion of before the list", func() error { return m.Delete(at(8, "192.0.2.2")) }, ""},
		{"a tombstone", func() error { return m.Delete(cache.DeletedFinalStateUnknown{Obj: at(11, "192.0.2.3")}) }, "gone"},
		{"an event of before that", func() error { return m.Add(at(10, "192.0.2.3")) }, ""},
	} {
		unheard := control.NewSlice(at(0, "192.0.2.9"), false)
		sink.objs[key] = unheard
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		got := ""
		switch o, ok := sink.objs[key].(*control.Slice); {
		case !ok:
			got = "gone"
		case o != unheard:
			got = o.Object().Endpoints[0].Addresses[0]
		}
		if got != step.want {
			t.Errorf("%s: %q is told, want %q", step.name, got, step.want)
		}
	}
	all, err := s.List(t.Context(), control.KindEndpointSlice)
	if err != nil || len(all) != 0 {
		t.Errorf("%v, %v is listed of what is gone", all, err)
	}
}
