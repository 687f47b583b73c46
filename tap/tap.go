// Package tap opens multi-queue TAP devices with the virtio-net header
// (Linux Documentation/networking/tuntap.rst) and moves frames through them.
//
// Two processes share the work. The CNI plugin calls Create or Attach in the
// pod's network namespace and passes the queue descriptors on; the daemon, which
// never enters a namespace and holds no privilege, makes a Queue out of each.
// Addresses, routes and link state are none of this package's business.
//
// The header is what makes the switch fast: it lets the kernel hand over TCP and
// UDP super-frames and frames without checksum, and take them back. Where a
// kernel refuses it, a plain TAP does the job with every frame whole on the wire.
package tap

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxQueues is the most queues that one device is opened with: more than a node
// has workers, and few enough that all fit in one message (Linux allows a device
// 256 and a message 253 descriptors).
const MaxQueues = 64

// Features is the set of offloads a device has. It is a number in JSON, so that
// it can travel beside the descriptors.
type Features uint32

// The offloads, each with the kernel that brought it.
const (
	VNet   Features = 1 << iota // frames carry the virtio-net header (2.6.27)
	CSUM                        // the kernel hands over partial checksums (2.6.27)
	TSO4                        // and TCP super-frames over IPv4 (2.6.27)
	TSO6                        // and over IPv6 (2.6.27)
	TSOECN                      // whose first segment may carry CWR (2.6.27)
	USO                         // and UDP super-frames, IPv4 and IPv6 (6.2)

	knownFeatures = VNet | CSUM | TSO4 | TSO6 | TSOECN | USO
)

var featureTable = [...]struct {
	bit   Features
	tun   int // TUN_F_ bits of TUNSETOFFLOAD
	name  string
	since string
}{
	{VNet, 0, "vnet", "2.6.27"},
	{CSUM, unix.TUN_F_CSUM, "csum", "2.6.27"},
	{TSO4, unix.TUN_F_TSO4, "tso4", "2.6.27"},
	{TSO6, unix.TUN_F_TSO6, "tso6", "2.6.27"},
	{TSOECN, unix.TUN_F_TSO_ECN, "tso-ecn", "2.6.27"},
	// tun_set_offload knows the two only together.
	{USO, unix.TUN_F_USO4 | unix.TUN_F_USO6, "uso", "6.2"},
}

// Has reports whether every feature of want is in f.
func (f Features) Has(want Features) bool { return f&want == want }

// String lists the features, as in "vnet,csum,tso4"; "plain" when there is none.
func (f Features) String() string {
	var names []string
	for _, e := range featureTable {
		if f.Has(e.bit) {
			names = append(names, e.name)
		}
	}
	if rest := f &^ knownFeatures; rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	if len(names) == 0 {
		return "plain"
	}
	return strings.Join(names, ",")
}

// Missing names each feature that f lacks and the kernel that would bring it, for
// a log line: the device works without, only slower.
func (f Features) Missing() []*FeatureError {
	var missing []*FeatureError
	for _, e := range featureTable {
		if !f.Has(e.bit) {
			missing = append(missing, &FeatureError{Feature: "TAP " + e.name, Since: e.since})
		}
	}
	return missing
}

// validate refuses sets that no kernel has: offloads are announced in the header,
// and segmentation implies partial checksums.
func (f Features) validate() error {
	switch {
	case f&^knownFeatures != 0:
		return fmt.Errorf("unknown feature bits %#x", uint32(f&^knownFeatures))
	case f != 0 && !f.Has(VNet):
		return fmt.Errorf("features %q without vnet", f)
	case f&(TSO4|TSO6|TSOECN|USO) != 0 && !f.Has(CSUM):
		return fmt.Errorf("features %q without csum", f)
	}
	return nil
}

// offloadBits is f as TUNSETOFFLOAD takes it.
func (f Features) offloadBits() int {
	bits := 0
	for _, e := range featureTable {
		if f.Has(e.bit) {
			bits |= e.tun
		}
	}
	return bits
}

// FeatureError says that the kernel lacks something, and which one has it. It is
// found by asking the kernel, never from its version. errors.Is matches
// errors.ErrUnsupported and Err.
type FeatureError struct {
	Feature string
	Since   string // first Linux release with the feature
	Err     error  // what the kernel answered, or nil
}

func (e *FeatureError) Error() string {
	s := fmt.Sprintf("%s is not supported by this kernel: Linux %s or newer is needed", e.Feature, e.Since)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives errors.Is both the class and the cause.
func (e *FeatureError) Unwrap() []error {
	if e.Err == nil {
		return []error{errors.ErrUnsupported}
	}
	return []error{errors.ErrUnsupported, e.Err}
}

// Errors that callers tell apart. ErrExists and ErrNotExist are about the device.
var (
	ErrExists   = errors.New("device exists")
	ErrNotExist = errors.New("no such device")
	ErrNotTAP   = errors.New("descriptor is not a TAP queue")
)

// Config says which device to make or to open.
type Config struct {
	// Name of the device, 1 to 15 bytes.
	Name string
	// Queues is the number of descriptors to open, at most MaxQueues. Zero: one.
	Queues int
	// Persistent keeps the device, without carrier, when its last descriptor
	// closes. Attach ignores it: only such a device can be attached to.
	Persistent bool
	// Plain forgoes the virtio-net header although the kernel has it.
	Plain bool
}

func (c *Config) validate() error {
	// The kernel's dev_valid_name, and no template such as "tap%d".
	if n := len(c.Name); n == 0 || n >= unix.IFNAMSIZ {
		return fmt.Errorf("name has %d bytes, want 1 to %d", n, unix.IFNAMSIZ-1)
	}
	if c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/:% \t\n\v\f\r\x00") {
		return errors.New("name has a character that the kernel refuses")
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 0 || c.Queues > MaxQueues {
		return fmt.Errorf("%d queues, want 1 to %d", c.Queues, MaxQueues)
	}
	return nil
}
