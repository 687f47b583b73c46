package snapshot

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

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
	if objs, err := Load(path); err != nil || objs != nil {
		t.Fatalf("load of no snapshot: %v, %v; want neither objects nor an error", objs, err)
	}
	want, err := control.Decode([]byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, control.NewPod(control.PodInfo{
		Node: "a", Namespace: "default", Name: "p", ContainerID: "c", Interface: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
	}))
	if err := Save(path, slices.Values(want)); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for i := range want {
		w, _ := control.Encode(want[i])
		g, _ := control.Encode(got[i])
		if string(g) != string(w) || reflect.TypeOf(got[i]) != reflect.TypeOf(want[i]) {
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
	if err := Save(path, slices.Values(objs)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	var damaged *statefile.DamagedError
	if _, err := Load(path); !errors.As(err, &damaged) {
		t.Fatalf("%v, want a *DamagedError", err)
	}
	if objs, err := Load(path); err != nil || objs != nil {
		t.Errorf("second load: %v, %v; want a cold start", objs, err)
	}
}
