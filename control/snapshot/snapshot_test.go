package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
	"vswitch/control/statefile"
)

const objects = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nothing}
spec: {selector: {}, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.9], conditions: {ready: false}}]
ports: [{port: 80}]
`

func TestObjectsComeBackAsTheyWere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	if objs, err := At(path).Load(); err != nil || objs != nil {
		t.Fatalf("load of no snapshot: %v, %v; want neither objects nor an error", objs, err)
	}
	want, err := control.Decode([]byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, control.NewPod(control.PodInfo{
		Node: "a", Namespace: "default", Name: "p", ContainerID: "c", Interface: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
	}))
	if err := At(path).Replace(slices.Values(want)); err != nil {
		t.Fatal(err)
	}
	got, err := At(path).Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for i := range want {
		o := asKept(want[i])
		w, _ := control.Encode(o)
		g, _ := control.Encode(got[i])
		if string(g) != string(w) || reflect.TypeOf(got[i]) != reflect.TypeOf(o) {
			t.Errorf("object %d: %s, want %s", i, g, w)
		}
	}
	if s := got[1].(*corev1.Service); len(s.Spec.Selector) != 0 {
		t.Errorf("selector %v, want none", s.Spec.Selector)
	}
}

// A damaged snapshot is a cold start that says so (case 51).
func TestDamagedSnapshotIsSaidAndSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	objs, err := control.Decode([]byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	if err := At(path).Replace(slices.Values(objs)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	var damaged *statefile.DamagedError
	if _, err := At(path).Load(); !errors.As(err, &damaged) {
		t.Fatalf("%v, want a *DamagedError", err)
	}
	if objs, err := At(path).Load(); err != nil || objs != nil {
		t.Errorf("second load: %v, %v; want a cold start", objs, err)
	}
}

// asKept is an object as Load gives it, in whichever form it was saved.
func asKept(o control.Object) control.Object {
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		return control.NewSlice(s, true)
	}
	return o
}

// saved has objects in a snapshot, and returns them by key.
func saved(t *testing.T) (*Snapshot, map[control.Key]control.Object) {
	t.Helper()
	s := At(filepath.Join(t.TempDir(), "snapshot.json"))
	objs, err := control.Decode([]byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(slices.Values(objs)); err != nil {
		t.Fatal(err)
	}
	all := map[control.Key]control.Object{}
	for _, o := range objs {
		all[control.KeyOf(o)] = o
	}
	return s, all
}

func service(t *testing.T, name, port string) control.Object {
	t.Helper()
	objs, err := control.Decode([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {ports: [{port: " + port + "}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return objs[0]
}

// appendTo adds changes to a snapshot and to what is wanted of it.
func appendTo(t *testing.T, s *Snapshot, want map[control.Key]control.Object, changes map[control.Key]control.Object) {
	t.Helper()
	if err := s.Append(maps.All(changes)); err != nil {
		t.Fatal(err)
	}
	for k, o := range changes {
		if o == nil {
			delete(want, k)
		} else {
			want[k] = o
		}
	}
}

func wantLoaded(t *testing.T, path string, want map[control.Key]control.Object) {
	t.Helper()
	objs, err := At(path).Load()
	if err != nil {
		t.Fatal(err)
	}
	got := map[control.Key]string{}
	for _, o := range objs {
		js, err := control.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		got[control.KeyOf(o)] = string(js)
	}
	if len(got) != len(want) || len(objs) != len(want) {
		t.Errorf("%d objects, want %d", len(objs), len(want))
	}
	for k, o := range want {
		if js, err := control.Encode(asKept(o)); err != nil || got[k] != string(js) {
			t.Errorf("%v: %s, want %s (%v)", k, got[k], js, err)
		}
	}
}

// What is loaded is what was written whole and all that was appended since, however
// often an object came and went.
func TestChangesComeBack(t *testing.T) {
	s, want := saved(t)
	web, other := service(t, "web", "81"), service(t, "other", "80")
	gone := control.KeyOf(other)
	for _, changes := range []map[control.Key]control.Object{
		{control.KeyOf(web): web, gone: other},
		{gone: nil},
		{gone: service(t, "other", "82"), {Kind: control.KindService, Scope: "default", Name: "nothing"}: nil},
		{{Kind: control.KindService, Scope: "default", Name: "never"}: nil},
	} {
		appendTo(t, s, want, changes)
		wantLoaded(t, s.file.Path, want)
	}
	if s.Long() {
		t.Error("a journal of four records is long")
	}
	objs := slices.Collect(maps.Values(want))
	if err := s.Replace(slices.Values(objs)); err != nil {
		t.Fatal(err)
	}
	wantLoaded(t, s.file.Path, want)
}

// A daemon that is killed between the two files finds the newer objects and a journal of
// the older.
func TestAJournalOfOtherObjectsIsNone(t *testing.T) {
	s, want := saved(t)
	web := service(t, "web", "81")
	appendTo(t, s, want, map[control.Key]control.Object{control.KeyOf(web): web})
	left, err := os.ReadFile(s.journal.Path)
	if err != nil {
		t.Fatal(err)
	}
	other := service(t, "other", "80")
	if err := s.Replace(slices.Values([]control.Object{other})); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.journal.Path, left, 0o600); err != nil {
		t.Fatal(err)
	}
	wantLoaded(t, s.file.Path, map[control.Key]control.Object{control.KeyOf(other): other})
}

func TestAJournalGrowsLong(t *testing.T) {
	s, _ := saved(t)
	web := service(t, "web", "81")
	js, err := control.Encode(web)
	if err != nil {
		t.Fatal(err)
	}
	for written := 0; !s.Long(); written += len(js) {
		if written > 2*journalLeast {
			t.Fatalf("not long after %d bytes", written)
		}
		if err := s.Append(func(yield func(control.Key, control.Object) bool) {
			for range 100 {
				if !yield(control.KeyOf(web), web) {
					return
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		written += 99 * len(js)
	}
	if err := s.Replace(slices.Values([]control.Object{web})); err != nil || s.Long() {
		t.Errorf("long after it was begun anew (%v)", err)
	}
}

// A journal whose middle is damaged makes a cold start: what the objects were is not known.
func TestDamagedJournalIsSaidAndSetAside(t *testing.T) {
	s, want := saved(t)
	for _, port := range []string{"81", "82"} {
		web := service(t, "web", port)
		appendTo(t, s, want, map[control.Key]control.Object{control.KeyOf(web): web})
	}
	text, err := os.ReadFile(s.journal.Path)
	if err != nil {
		t.Fatal(err)
	}
	text[bytes.Index(text, []byte("81"))] = '7'
	if err := os.WriteFile(s.journal.Path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *statefile.DamagedError
	if objs, err := At(s.file.Path).Load(); !errors.As(err, &damaged) || objs != nil || damaged.Path != s.journal.Path {
		t.Fatalf("%v, %v, want a *DamagedError of the journal", objs, err)
	}
	if objs, err := At(s.file.Path).Load(); err != nil || objs != nil {
		t.Errorf("second load: %v, %v; want a cold start", objs, err)
	}
}

// BenchmarkReplace writes the slices of a large cluster, 10,000 of 15 endpoints: as they
// are kept, and as Kubernetes' types.
func BenchmarkReplace(b *testing.B) {
	for _, as := range []string{"kept", "typed"} {
		b.Run(as, func(b *testing.B) {
			var all []control.Object
			for i := range 10_000 {
				s := &discoveryv1.EndpointSlice{
					ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s-%d", i), Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
					AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
				}
				for e := range 15 {
					s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
						Addresses: []string{fmt.Sprintf("10.1.%d.%d", i%250, e)}, NodeName: new(fmt.Sprintf("node-%d", e)),
						Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
						TargetRef:  &corev1.ObjectReference{UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", 15*i+e))},
					})
				}
				if all = append(all, s); as == "kept" {
					all[i] = control.NewSlice(s, true)
				}
			}
			to := At(filepath.Join(b.TempDir(), "snapshot"))
			b.ReportAllocs()
			for b.Loop() {
				if err := to.Replace(slices.Values(all)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
