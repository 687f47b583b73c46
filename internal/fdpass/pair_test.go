package fdpass

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestThePairsEndsAreOneConnection(t *testing.T) {
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	fd, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, 0) // as a child has it
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	inherited, err := ConnOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := WritePacket(ours, []byte("hello"), nil); err != nil {
		t.Fatal(err)
	}
	if text, _, err := ReadPacket(inherited); err != nil || string(text) != "hello" {
		t.Errorf("%q, %v", text, err)
	}
	inherited.Close()
	if _, _, err := ReadPacket(ours); err == nil {
		t.Error("its end is not seen")
	}
}

func TestWhatIsNoConnectionIsClosed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd, err := unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := ConnOf(fd); err == nil {
		c.Close()
		t.Fatal("a pipe is taken")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("it is open still: %v", err)
	}
}
