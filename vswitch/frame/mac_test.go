package frame

import (
	"encoding/json"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want MAC
		ok   bool
	}{
		{"02:00:5e:00:00:01", MAC{2, 0, 0x5e, 0, 0, 1}, true},
		{"02:00:5E:AB:cd:01", MAC{2, 0, 0x5e, 0xab, 0xcd, 1}, true},
		{"02:00:5e:00:00", MAC{}, false},
		{"02:00:5e:00:00:01:02:03", MAC{}, false}, // EUI-64, which net.ParseMAC takes
		{"", MAC{}, false},
		{"zz:00:5e:00:00:01", MAC{}, false},
	} {
		got, err := ParseMAC(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseMAC(%q) = %v, %v", tt.in, got, err)
		}
	}
}

func TestMACInJSON(t *testing.T) {
	type doc struct{ M MAC }
	want := doc{MAC{2, 0, 0x5e, 0, 0, 0xfe}}
	b, err := json.Marshal(want)
	if err != nil || string(b) != `{"M":"02:00:5e:00:00:fe"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var got doc
	if err := json.Unmarshal(b, &got); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`{"M":"1:2"}`), &got); err == nil || got != want {
		t.Errorf("a bad address gave %+v, %v; want an error and the value untouched", got, err)
	}
}

func TestMACClasses(t *testing.T) {
	for _, tt := range []struct {
		m               MAC
		multicast, zero bool
	}{
		{Broadcast, true, false},
		{MAC{}, false, true},
		{MAC{0x33, 0x33, 0, 0, 0, 1}, true, false},
		{MAC{1, 0, 0x5e, 0, 0, 1}, true, false},
		{MAC{2, 0, 0x5e, 0, 0, 1}, false, false},
	} {
		if tt.m.IsMulticast() != tt.multicast || tt.m.IsZero() != tt.zero {
			t.Errorf("%v: multicast %v, zero %v", tt.m, tt.m.IsMulticast(), tt.m.IsZero())
		}
	}
}

func TestLocalMACIsLocalAndUnicast(t *testing.T) {
	for first := range 256 {
		seed := [6]byte{byte(first), 0xff, 1, 2, 3, 4}
		m := LocalMAC(seed)
		if m[0]&3 != 2 {
			t.Fatalf("seed %x gives %v: not locally administered unicast", seed, m)
		}
		if m[0]&^3 != seed[0]&^3 || MAC(seed) != (MAC{seed[0], m[1], m[2], m[3], m[4], m[5]}) {
			t.Fatalf("seed %x gives %v: more than two bits changed", seed, m)
		}
	}
}
