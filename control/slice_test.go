package control

import (
	"net/netip"
	"reflect"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// drawSlice is an EndpointSlice of what is kept, said in every way that there is.
func drawSlice(t *rapid.T) *discoveryv1.EndpointSlice {
	text := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	maybe := func(name string, of ...string) *string {
		if s := text(name, append(of, "none")...); s != "none" {
			return &s
		}
		return nil
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: text("name", "a", "b"), UID: types.UID(text("uid", "1", "2")), ResourceVersion: text("version", "5", "6")},
		AddressType: discoveryv1.AddressType(text("type", "IPv4", "IPv6", "FQDN")), Endpoints: []discoveryv1.Endpoint{},
	}
	if service := text("service", "", "web"); service != "" {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	}
	if at := text("trigger", "", "2026-01-01T00:00:00Z"); at != "" {
		s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: at}
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		p := discoveryv1.EndpointPort{Name: maybe("port", "", "http")}
		if proto := maybe("protocol", "", "TCP", "SCTP", "IPX"); proto != nil {
			p.Protocol = new(corev1.Protocol(*proto))
		}
		if rapid.Bool().Draw(t, "numbered") {
			p.Port = new(rapid.SampledFrom([]int32{-1, 0, 80, 65536}).Draw(t, "number"))
		}
		s.Ports = append(s.Ports, p)
	}
	condition := rapid.Custom(func(t *rapid.T) *bool {
		return rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(t, "condition")
	})
	for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		e := discoveryv1.Endpoint{
			Conditions: discoveryv1.EndpointConditions{Ready: condition.Draw(t, "ready"), Serving: condition.Draw(t, "serving"), Terminating: condition.Draw(t, "terminating")},
			NodeName:   maybe("node", "", "a", "b"), Hostname: maybe("hostname", "", "db-0"),
		}
		if a := maybe("address", "192.0.2.1", "2001:db8::1", "2001:DB8::1", "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.01", "web.example", "127.0.0.1"); a != nil {
			e.Addresses = []string{*a}
		}
		if uid := maybe("pod", "3b1f0c1e-0000-4000-8000-00000000ab01", "3B1F0C1E-0000-4000-8000-00000000AB01", "3b1f0c1e00004000800000000000ab01----", "mirror"); uid != nil {
			e.TargetRef = &corev1.ObjectReference{UID: types.UID(*uid)}
		}
		if zone := text("zone", "", "x", "y"); zone != "" {
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func TestASliceIsWhatItCameFrom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is := drawSlice(t)
		kept := NewSlice(is, true)
		if got := kept.Object(); !reflect.DeepEqual(got, is) {
			t.Fatalf("%+v, want %+v", got, is)
		}
		if KeyOf(kept) != KeyOf(is) || version(kept) != version(is) {
			t.Fatalf("%v, want %v", KeyOf(kept), KeyOf(is))
		}
		i := 0
		for _, e := range kept.each { // as the API's own types say it
			o := &is.Endpoints[i]
			i++
			ready, serving, terminating := e.conditions()
			c := &o.Conditions
			if want := c.Ready == nil || *c.Ready; ready != want {
				t.Fatalf("ready %v, want %v", ready, want)
			}
			if want := c.Serving == nil || *c.Serving; serving != want {
				t.Fatalf("serving %v, want %v", serving, want)
			}
			if want := c.Terminating != nil && *c.Terminating; terminating != want {
				t.Fatalf("terminating %v, want %v", terminating, want)
			}
			if e.hasAddress() != (len(o.Addresses) > 0) {
				t.Fatalf("%+v: hasAddress is %v", o, e.hasAddress())
			}
			if len(o.Addresses) == 0 {
				continue
			}
			a, err := e.endpointAddr(is.AddressType)
			wantAddr, wantErr := endpointAddr(is.AddressType, o.Addresses[0])
			if (err == nil) != (wantErr == nil) || err == nil && a != wantAddr {
				t.Fatalf("%+v: %v, %v, want %v, %v", o, a, err, wantAddr, wantErr)
			}
			want := identity("default/web", o.Addresses[0])
			if o.TargetRef != nil {
				want = identity(string(o.TargetRef.UID), "")
			}
			if got := e.identity("default", "web"); got != want {
				t.Fatalf("%+v: identity %x, want %x: flows would lose it", o, got, want)
			}
		}
	})
}

func version(o Object) string { return o.GetResourceVersion() }

// What is stored is what the API's own encoding says.
func TestAStoredSliceIsReadAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is := drawSlice(t)
		if rapid.Bool().Draw(t, "any name") {
			is.Name = rapid.String().Draw(t, "text")
		}
		kept := NewSlice(is, true)
		read := func(o Object) *Slice {
			js, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeStored(KindEndpointSlice, js)
			if err != nil {
				t.Fatalf("%s: %v", js, err)
			}
			if got.GetObjectKind().GroupVersionKind().Kind != "EndpointSlice" || got.GetResourceVersion() != is.ResourceVersion {
				t.Fatalf("%s", js)
			}
			return NewSlice(got.(*discoveryv1.EndpointSlice), true)
		}
		if got, want := read(kept), read(kept.Object()); !got.Alike(want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	})
}

func TestSlicesAreAlikeThatSayTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSlice(t), drawSlice(t)
		if rapid.Bool().Draw(t, "again") {
			b = a.DeepCopy()
			b.ResourceVersion = "7"
		}
		got := NewSlice(a, true).Alike(NewSlice(b, true))
		b.ResourceVersion = a.ResourceVersion
		if want := reflect.DeepEqual(a, b); got != want {
			t.Fatalf("%v, want %v: %+v and %+v", got, want, a, b)
		}
	})
}

func TestHostnamesAreForgottenWhereNobodyAsks(t *testing.T) {
	s := &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{Hostname: new("db-0")}}}
	if got := NewSlice(s, false).Object().Endpoints[0].Hostname; got != nil {
		t.Errorf("hostname %q is kept", *got)
	}
}

// A node of a large cluster has hundreds of thousands of them.
func TestAnEndpointOfASliceIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(sliceEndpoint{}); n > 56 {
		t.Errorf("%d bytes, want 56", n)
	}
	full := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	for range 100 {
		full.Endpoints = append(full.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, 1, 2, 3}).String()}, NodeName: new("a"), Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: "3b1f0c1e-0000-4000-8000-00000000ab01"},
		})
	}
	if s := NewSlice(full, true); s.more != nil {
		t.Errorf("%d of 100 ordinary endpoints need more room", len(s.more))
	}
}
