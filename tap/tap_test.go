package tap

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFeatures(t *testing.T) {
	f := VNet | CSUM | TSO4
	if got := f.String(); got != "vnet,csum,tso4" {
		t.Errorf("String: %q", got)
	}
	if got := Features(0).String(); got != "plain" {
		t.Errorf("String of none: %q", got)
	}
	if b, err := json.Marshal(f); err != nil || string(b) != "7" {
		t.Errorf("JSON: %s, %v", b, err)
	}
	var missing []string
	for _, e := range f.Missing() {
		missing = append(missing, e.Feature+" "+e.Since)
		if !errors.Is(e, errors.ErrUnsupported) {
			t.Errorf("%v is not errors.ErrUnsupported", e)
		}
	}
	if got := strings.Join(missing, "; "); got != "TAP tso6 2.6.27; TAP tso-ecn 2.6.27; TAP uso 6.2" {
		t.Errorf("Missing: %s", got)
	}
	if got := f.offloadBits(); got != unix.TUN_F_CSUM|unix.TUN_F_TSO4 {
		t.Errorf("offload bits %#x", got)
	}
}

func TestFeatureErrorSaysWhatToDo(t *testing.T) {
	err := error(&FeatureError{Feature: "multi-queue TAP", Since: "3.8", Err: unix.EINVAL})
	want := "multi-queue TAP is not supported by this kernel: Linux 3.8 or newer is needed: invalid argument"
	if err.Error() != want {
		t.Errorf("%q", err)
	}
	if !errors.Is(err, unix.EINVAL) || !errors.Is(err, errors.ErrUnsupported) {
		t.Error("the cause or the class is lost")
	}
}

func TestConfigIsValidated(t *testing.T) {
	for _, c := range []Config{
		{},
		{Name: "sixteen-bytes-xx"},
		{Name: "a/b"}, {Name: "."}, {Name: ".."}, {Name: "a b"}, {Name: "a:b"},
		{Name: "tap%d"}, // a template: the kernel would pick another name
		{Name: "a\x00b"},
		{Name: "ok", Queues: -1},
		{Name: "ok", Queues: MaxQueues + 1},
	} {
		if d, err := Create(c); err == nil {
			d.Destroy()
			t.Errorf("Create(%+v) succeeded", c)
		} else if !strings.HasPrefix(err.Error(), "tap: create ") {
			t.Errorf("Create(%+v): %v does not name the operation", c, err)
		}
	}
	c := Config{Name: "fifteen-bytes-x"}
	if err := c.validate(); err != nil || c.Queues != 1 {
		t.Errorf("zero queues: %+v, %v; want one", c, err)
	}
}
