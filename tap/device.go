package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/frame"
)

const tunPath = "/dev/net/tun"

// Device is an open TAP: its queues as bare descriptors, non-blocking and
// close-on-exec, to be passed to the process that moves frames.
type Device struct {
	Name     string
	FDs      []int // owned by the Device until Close
	Features Features
}

// Create makes a new device in the network namespace of the calling thread, down
// and without address. It fails with ErrExists where the name is taken: the
// kernel would otherwise silently add queues to the device that has it.
func Create(c Config) (*Device, error) {
	return open(c, true)
}

// Attach opens queues of a persistent device in the network namespace of the
// calling thread, after whoever held its queues is gone. Create's Plain must be
// given again: the header is a property of the device that each opening sets.
// It fails with ErrNotExist where there is none.
func Attach(c Config) (*Device, error) {
	c.Persistent = true
	return open(c, false)
}

func open(c Config, create bool) (*Device, error) {
	op := "attach"
	if create {
		op = "create"
	}
	d, err := openQueues(c, create)
	if err != nil {
		return nil, fmt.Errorf("tap: %s %q: %w", op, c.Name, err)
	}
	return d, nil
}

func openQueues(c Config, create bool) (_ *Device, err error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	flags, err := deviceFlags(&c)
	if err != nil {
		return nil, err
	}
	if err := checkPresence(c.Name, create); err != nil {
		return nil, err
	}
	d := &Device{Name: c.Name}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if flags&unix.IFF_VNET_HDR == 0 {
		return d, d.openPlain(&c, flags)
	}
	for i := range c.Queues {
		f := flags
		if create && i == 0 {
			f |= unix.IFF_TUN_EXCL
		}
		if err := d.addQueue(f); err != nil {
			return d, err
		}
	}
	fd := d.FDs[0]
	if !create {
		if err := checkPersistent(fd); err != nil {
			return d, err
		}
	}
	if err := setHeader(fd); err != nil {
		return d, err
	}
	if d.Features, err = probeOffloads(fd); err != nil {
		return d, err
	}
	if !create {
		return d, nil
	}
	// Without an owner the device takes queues from any process of the namespace
	// that can open /dev/net/tun, CAP_NET_ADMIN or not.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, os.Geteuid()); err != nil {
		return d, fmt.Errorf("set owner: %w", err)
	}
	if c.Persistent { // last: a device half made goes with its descriptors
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return d, fmt.Errorf("set persistent: %w", err)
		}
	}
	return d, nil
}

// Close closes the descriptors. A device that is not persistent goes with the
// last one, duplicates in other processes included.
func (d *Device) Close() {
	for _, fd := range d.FDs {
		unix.Close(fd)
	}
	d.FDs = nil
}

// Destroy takes persistence away and closes the descriptors: what to call when a
// later step of setting up a pod failed.
func (d *Device) Destroy() error {
	var err error
	if len(d.FDs) > 0 {
		if e := unix.IoctlSetInt(d.FDs[0], unix.TUNSETPERSIST, 0); e != nil {
			err = fmt.Errorf("tap: destroy %q: %w", d.Name, e)
		}
	}
	d.Close()
	return err
}

// deviceFlags asks the driver what it has and picks the flags for TUNSETIFF,
// without IFF_VNET_HDR where the kernel refuses it.
func deviceFlags(c *Config) (uint16, error) {
	fd, err := openTun()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	have, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
	if err != nil {
		return 0, &FeatureError{Feature: "TUNGETFEATURES", Since: "2.6.27", Err: err}
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	switch {
	case have&unix.IFF_MULTI_QUEUE != 0:
		flags |= unix.IFF_MULTI_QUEUE // with one queue too: all openings must agree
	case c.Queues > 1:
		return 0, &FeatureError{Feature: "multi-queue TAP (IFF_MULTI_QUEUE)", Since: "3.8"}
	}
	if have&unix.IFF_VNET_HDR != 0 && !c.Plain {
		flags |= unix.IFF_VNET_HDR
	}
	return flags, nil
}

// openTun opens the clone device. The namespace of the calling thread sticks to
// the descriptor here, not at TUNSETIFF.
func openTun() (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, &FeatureError{Feature: "TUN/TAP (" + tunPath + ", module tun)", Since: "2.4", Err: err}
	}
	return -1, &os.PathError{Op: "open", Path: tunPath, Err: err}
}

// checkPresence makes what a later ioctl would do implicitly an error. The
// ioctls' own answers (IFF_TUN_EXCL, IFF_PERSIST) settle a race with it.
func checkPresence(name string, create bool) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	switch err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr); {
	case err == nil && create:
		return ErrExists
	case errors.Is(err, unix.ENODEV) && !create:
		return ErrNotExist
	case err != nil && !errors.Is(err, unix.ENODEV):
		return fmt.Errorf("look up: %w", err)
	}
	return nil
}

// addQueue opens one descriptor and ties it to the device.
func (d *Device) addQueue(flags uint16) error {
	fd, err := openTun()
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(d.Name)
	if err != nil {
		unix.Close(fd)
		return err
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) && flags&unix.IFF_TUN_EXCL != 0 {
			return ErrExists
		}
		return fmt.Errorf("open queue %d: %w", len(d.FDs), err)
	}
	d.FDs = append(d.FDs, fd)
	return nil
}

// checkPersistent makes sure that TUNSETIFF found the device and did not just
// make one: nothing that it makes is persistent.
func checkPersistent(fd int) error {
	_, flags, err := queryDevice(fd)
	if err != nil {
		return err
	}
	if flags&unix.IFF_PERSIST == 0 {
		return fmt.Errorf("not persistent: %w", ErrNotExist)
	}
	return nil
}

// queryDevice asks which device a descriptor is a queue of. It works from any
// namespace and without privilege.
func queryDevice(fd int) (name string, flags uint16, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", 0, fmt.Errorf("%w: %w", ErrNotTAP, err)
	}
	flags = ifr.Uint16()
	if flags&unix.IFF_TAP == 0 || flags&unix.IFF_NO_PI == 0 {
		return "", 0, fmt.Errorf("%w: flags %#x", ErrNotTAP, flags)
	}
	return ifr.Name(), flags, nil
}

// setHeader fixes the header's length and byte order. Both belong to the device,
// all queues share them.
func setHeader(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, frame.VNetHeaderBytes); err != nil {
		return &FeatureError{Feature: "TUNSETVNETHDRSZ", Since: "2.6.34", Err: err}
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return &FeatureError{Feature: "TUNSETVNETLE", Since: "4.0", Err: err}
	}
	return nil
}

// probeOffloads sets the most offloads that the kernel takes, the newest given up
// first, and says which. The kernel answers EINVAL to a set with an unknown bit.
func probeOffloads(fd int) (Features, error) {
	for _, f := range []Features{
		VNet | CSUM | TSO4 | TSO6 | TSOECN | USO,
		VNet | CSUM | TSO4 | TSO6 | TSOECN,
		VNet | CSUM | TSO4 | TSO6,
		VNet | CSUM,
		VNet,
	} {
		err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, f.offloadBits())
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return 0, fmt.Errorf("set offload %q: %w", f, err)
		}
	}
	return VNet, nil // TUNSETOFFLOAD itself is unknown
}
