package tap

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// present reports whether the device is in n.
func present(t *testing.T, n *namespace) bool {
	t.Helper()
	found := false
	n.do(t, func() error {
		_, err := netlink.LinkByName(tapName)
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			return nil
		}
		found = err == nil
		return err
	})
	return found
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestLifeOfADevice(t *testing.T) {
	for _, plain := range []bool{false, true} {
		name := map[bool]string{false: "vnet", true: "plain"}[plain]
		t.Run(name, func(t *testing.T) {
			n := newNamespace(t)
			before := openFDs(t)
			c := Config{Name: tapName, Queues: 2, Persistent: true, Plain: plain}
			n.do(t, func() error {
				if _, err := Attach(c); !errors.Is(err, ErrNotExist) {
					t.Errorf("Attach to nothing: %v, want ErrNotExist", err)
				}
				return nil
			})
			if present(t, n) {
				t.Fatal("Attach made a device")
			}

			var d *Device
			n.do(t, func() (err error) {
				d, err = Create(c)
				if err != nil {
					return err
				}
				if _, err := Create(c); !errors.Is(err, ErrExists) {
					t.Errorf("second Create: %v, want ErrExists", err)
				}
				return nil
			})
			if d.Features.Has(VNet) == plain || len(d.FDs) != 2 {
				t.Fatalf("features %v, %d descriptors", d.Features, len(d.FDs))
			}
			for _, fd := range d.FDs {
				status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				if err != nil || status&unix.O_NONBLOCK == 0 {
					t.Errorf("descriptor is blocking: %#x, %v", status, err)
				}
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				if err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor is not close-on-exec: %#x, %v", flags, err)
				}
			}
			d.Close()
			if !present(t, n) {
				t.Fatal("persistent device went with its descriptors")
			}

			want := d.Features
			n.do(t, func() (err error) {
				d, err = Attach(c)
				return err
			})
			if d.Features != want {
				t.Errorf("attached with %v, created with %v", d.Features, want)
			}
			d.Close()
			if !present(t, n) {
				t.Fatal("Attach took persistence away")
			}
			n.do(t, func() (err error) {
				d, err = Attach(c)
				return err
			})
			if err := d.Destroy(); err != nil {
				t.Error(err)
			}
			if present(t, n) {
				t.Error("device is still there after Destroy")
			}

			c.Persistent = false
			n.do(t, func() (err error) {
				d, err = Create(c)
				return err
			})
			d.Close()
			if present(t, n) {
				t.Error("device that is not persistent survived its descriptors")
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func TestAttachRefusesADeviceThatIsNotPersistent(t *testing.T) {
	n := newNamespace(t)
	create(t, n, Config{Name: tapName, Queues: 2})
	n.do(t, func() error {
		if _, err := Attach(Config{Name: tapName, Queues: 2}); !errors.Is(err, ErrNotExist) {
			t.Errorf("%v, want ErrNotExist", err)
		}
		return nil
	})
}

func TestLinkDownAndDeviceDeleted(t *testing.T) {
	n := newNamespace(t)
	_, qs := create(t, n, Config{Name: tapName, Queues: 2, Persistent: true})
	q := qs[0]
	send := func() drop.Reason {
		f := frameOf(frame.VNet{}, packet(false, wire.ProtoUDP, 0, 100))
		q.Transmit([]*frame.Frame{f})
		return f.Drop
	}
	if r := send(); r != drop.EgressDown {
		t.Errorf("transmit to a link that is down: %v", r)
	}
	up(t, n, "192.0.2.1/24")
	if r := send(); r != drop.None {
		t.Errorf("transmit to a link that is up: %v", r)
	}
	runt := frameOf(frame.VNet{}, make([]byte, 5))
	if q.Transmit([]*frame.Frame{runt}); runt.Drop != drop.EgressRefused {
		t.Errorf("runt: %v", runt.Drop)
	}
	if q.Name() != tapName {
		t.Errorf("name %q", q.Name())
	}

	n.do(t, func() error {
		link, err := netlink.LinkByName(tapName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	// A worker that waits must wake up to learn it.
	poll := []unix.PollFd{{Fd: int32(q.PollFD()), Events: unix.POLLIN}}
	if k, err := unix.Poll(poll, 10_000); k != 1 || err != nil {
		t.Errorf("poll of a deleted device: %d, %v", k, err)
	}
	b := frame.NewBatch(4)
	if err := q.Receive(b); !errors.Is(err, unix.EBADFD) {
		t.Errorf("receive from a deleted device: %v, want EBADFD", err)
	}
	if r := send(); r != drop.EgressDown {
		t.Errorf("transmit to a deleted device: %v", r)
	}
	if _, err := NewQueue(q.PollFD(), allFeatures); !errors.Is(err, ErrNotTAP) {
		t.Errorf("NewQueue of a deleted device: %v, want ErrNotTAP", err)
	}
}

func TestFeaturesMustMatchTheDevice(t *testing.T) {
	n := newNamespace(t)
	for _, plain := range []bool{false, true} {
		var d *Device
		n.do(t, func() (err error) {
			d, err = Create(Config{Name: tapName, Plain: plain})
			return err
		})
		wrong := VNet
		if !plain {
			wrong = 0
		}
		if _, err := NewQueue(d.FDs[0], wrong); err == nil {
			t.Errorf("device with %v was opened with %v", d.Features, wrong)
		}
		d.Close()
	}
}

// TestStrangersGetNoQueue: a process of the pod that can open /dev/net/tun, but
// may not administer the namespace, must not add a queue to the pod's device.
func TestStrangersGetNoQueue(t *testing.T) {
	for _, plain := range []bool{false, true} {
		n := newNamespace(t)
		d, _ := create(t, n, Config{Name: tapName, Persistent: true, Plain: plain})
		n.do(t, func() error {
			fd, err := openTun()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			// The bare call changes this thread alone; capabilities go with uid 0.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
				return errno
			}
			ifr, err := unix.NewIfreq(tapName)
			if err != nil {
				return err
			}
			flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
			if d.Features.Has(VNet) {
				flags |= unix.IFF_VNET_HDR
			}
			ifr.SetUint16(flags)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); !errors.Is(err, unix.EPERM) {
				t.Errorf("TUNSETIFF by another user (plain %v): %v, want EPERM", plain, err)
			}
			return nil
		})
	}
}
