package tap

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/internal/fdpass"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

const socketEnv = "TAP_TEST_SOCKET"

// TestQueueFromAnotherUserNamespace is the claim that the design rests on: a
// process without any capability, outside, works with the queues of a TAP that
// was made in another user and network namespace.
func TestQueueFromAnotherUserNamespace(t *testing.T) {
	newNamespace(t) // its reasons to skip
	type passed struct {
		m   fdpass.Message
		fds []int
	}
	got := make(chan passed, 1)
	socket := filepath.Join(t.TempDir(), "fds")
	server, err := fdpass.Listen(socket, func(_ context.Context, m fdpass.Message, fds []int, _ fdpass.Cred) error {
		got <- passed{m, fds}
		return nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	defer func() {
		server.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	child := exec.CommandContext(t.Context(), "/proc/self/exe")
	child.Env = append(os.Environ(), socketEnv+"="+socket)
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	p := <-got // the child is gone: only these descriptors keep its namespace's device
	if p.m.Token != "a token" || len(p.fds) != 2 {
		t.Fatalf("%+v with %d descriptors, want 2", p.m, len(p.fds))
	}
	defer func() {
		for _, fd := range p.fds {
			unix.Close(fd)
		}
	}()
	err = onThread(func() error {
		if err := dropCapabilities(); err != nil {
			return err
		}
		return readAndWrite(t, p.fds, Features(p.m.Features))
	})
	if err != nil {
		t.Error(err)
	}
}

// dropCapabilities empties all sets of this thread.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err == nil {
		unix.Close(fd)
		return fmt.Errorf("a packet socket could still be opened")
	}
	return nil
}

// readAndWrite opens the queues, reads what the device's kernel sent, a neighbour
// discovery at least, and writes it back.
func readAndWrite(t *testing.T, fds []int, f Features) error {
	frames := 0
	for _, fd := range fds {
		q, err := NewQueue(fd, f)
		if err != nil {
			return err
		}
		if q.Name() != tapName || !q.Features().Has(VNet|CSUM|TSO4) {
			t.Errorf("queue of %q with %v", q.Name(), q.Features())
		}
		b := frame.NewBatch(frame.BatchFrames)
		if err := q.Receive(b); err != nil {
			return err
		}
		for i := range b.Len() {
			one := b.At(i)
			if one.Drop != drop.None {
				t.Errorf("frame of %d bytes: %v", one.Len(), one.Drop)
			}
			if q.Transmit([]*frame.Frame{one}); one.Drop != drop.None {
				t.Errorf("transmit: %v", one.Drop)
			}
		}
		frames += b.Len()
	}
	if frames == 0 {
		t.Error("no frame from the device")
	}
	return nil
}

// TestMain runs the child of the test above in its place where it was started so.
func TestMain(m *testing.M) {
	if socket := os.Getenv(socketEnv); socket != "" {
		if err := makeAndPass(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// makeAndPass is what the other process does: root of its own user namespace and
// nobody outside.
func makeAndPass(socket string) error {
	d, err := Create(Config{Name: tapName, Queues: 2})
	if err != nil {
		return err
	}
	defer d.Close()
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	// A datagram to a neighbour makes the kernel ask for it before Sendto returns.
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 2}}); err != nil {
		return err
	}
	m := fdpass.Message{Token: "a token", Features: uint32(d.Features)}
	return fdpass.Send(context.Background(), socket, m, d.FDs)
}
