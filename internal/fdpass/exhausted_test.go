package fdpass

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReceiverWithoutDescriptorsToSpare: the kernel then installs what fits and
// cuts the rest off. What fitted must not stay open.
func TestReceiverWithoutDescriptorsToSpare(t *testing.T) {
	verifyNoLeak(t)
	path, server := serve(t, func(_ context.Context, m Message, fds []int, _ Cred) error {
		closeAll(fds)
		t.Errorf("handler called with %+v and %d descriptors", m, len(fds))
		return nil
	})
	s := connect(t, path)
	waitConns(t, server, 1)
	fds := pipeFDs(t, 4)

	// The kernel hands out the lowest free number below the limit: leave one.
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = uint64(free) + 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	defer restore()

	if err := sendRaw(s, []byte(`{"token":"t"}`), unix.UnixRights(fds...)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxMessageBytes)
	n, err := unix.Read(s, buf)
	restore()
	if err != nil || !strings.Contains(string(buf[:n]), "descriptors lost") {
		t.Errorf("answer %q, %v, want a refusal", buf[:n], err)
	}
}
