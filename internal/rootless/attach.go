package rootless

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vswitch/internal/rootless/dataplane"
	"vswitch/internal/rootless/inside"
)

// AttachConfig says which namespace gets a network, and how. It is somebody else's
// (RootlessKit's, podman's), who says when it ends.
type AttachConfig struct {
	Self      string
	NetNS     string // path
	UserNS    string // path; empty: that of the network namespace
	Dataplane dataplane.Config
	// Bare leaves the interface's IPv4 addresses and routes to others.
	Bare  bool
	API   string // path of the socket that takes requests; empty: none
	Ready func() // called when the network works
	Log   *slog.Logger
}

// Attach gives a namespace a network until ctx ends, which is not an error.
func Attach(ctx context.Context, cfg AttachConfig) (err error) {
	made, fds, err := join(&cfg)
	if err != nil {
		return err
	}
	c := Config{Self: cfg.Self, Dataplane: cfg.Dataplane, Log: cfg.Log}
	c.Dataplane.Features = made.Features
	if cfg.API != "" {
		api, err := listenAPI(cfg.API)
		if err != nil {
			closeAll(fds)
			return err
		}
		defer os.Remove(cfg.API)
		c.Dataplane.API = true
		c.keep = map[string][]int{dataplane.APIName: {api}}
	}
	return keep(ctx, &c, fds, cfg.Ready)
}

// join has a process enter the namespace and make the interface.
func join(cfg *AttachConfig) (made inside.Message, fds []int, err error) {
	command, err := joinCommand(cfg)
	if err != nil {
		return made, nil, err
	}
	conn, theirs, err := inside.NewPair()
	if err != nil {
		return made, nil, err
	}
	defer conn.Close()
	defer theirs.Close()
	c := exec.Command(command[0], command[1:]...)
	var said strings.Builder
	c.Stderr = &said
	c.ExtraFiles = []*os.File{theirs} // becomes inside.ConnFD
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose end would kill it
	defer runtime.UnlockOSThread()
	if err := c.Start(); err != nil {
		return made, nil, fmt.Errorf("enter the namespace: %w", err)
	}
	theirs.Close() // or its end would not be seen
	err = conn.Send(inside.Message{Plan: &cfg.Dataplane.Plan, Setup: &inside.Setup{Bare: cfg.Bare}})
	if err == nil {
		made, fds, err = conn.Receive()
	}
	waitErr := c.Wait()
	var told *inside.Error
	if err != nil && !errors.As(err, &told) && waitErr != nil { // it never got there
		err = fmt.Errorf("%s: %w: %s", strings.Join(command[:1], " "), waitErr, strings.TrimSpace(said.String()))
	}
	return made, fds, err
}

// joinCommand starts this program in the namespace. Who is in another user namespace
// enters the one that the network namespace belongs to as well, which a program of
// several threads can't: so nsenter(1) does it.
func joinCommand(cfg *AttachConfig) ([]string, error) {
	net, err := os.Open(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer net.Close()
	enter := []string{"nsenter", "--net=" + cfg.NetNS}
	other, path, err := ownerOf(net, cfg.UserNS)
	if err != nil {
		return nil, err
	}
	if other {
		enter = append(enter, "--user="+path, "--preserve-credentials")
	}
	if enter[0], err = exec.LookPath("nsenter"); err != nil {
		return nil, fmt.Errorf("%w; want nsenter(1), of package util-linux", err)
	}
	return append(enter, "--", cfg.Self, "rootless", "join"), nil
}

// ownerOf finds the user namespace to enter, and whether it is another than ours.
func ownerOf(net *os.File, given string) (other bool, path string, err error) {
	path = given
	if path == "" {
		// NS_GET_USERNS (ioctl_ns(2)).
		fd, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			return false, "", fmt.Errorf("user namespace of %s: %w; want one of this user's own", net.Name(), err)
		}
		// It stays open for nsenter, which finds it by this process.
		unix.CloseOnExec(fd)
		path = filepath.Join("/proc", fmt.Sprint(os.Getpid()), "fd", fmt.Sprint(fd))
	}
	theirs, err := os.Stat(path)
	if err != nil {
		return false, "", fmt.Errorf("user namespace: %w", err)
	}
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return false, "", err
	}
	return !os.SameFile(own, theirs), path, nil
}

// listenAPI opens the API socket, which its user alone may reach. One that nobody
// listens at any more is replaced, as slirp4netns does it.
func listenAPI(path string) (fd int, err error) {
	if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > most {
		return -1, fmt.Errorf("API socket %s: %d bytes, and a socket's path has %d at most (unix(7))", path, len(path), most)
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("API socket: %w", err)
	}
	if err = removeStale(fd, path); err == nil {
		old := unix.Umask(0o177)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		unix.Umask(old)
	}
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("API socket %s: %w", path, err)
	}
	return fd, nil
}

// removeStale removes a socket that refuses connections; fd is one to ask with.
func removeStale(fd int, path string) error {
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: with as many waiting as it lets
		return errors.New("another process listens there")
	case errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.ECONNREFUSED):
		return err
	}
	if st, err := os.Lstat(path); err != nil || st.Mode()&os.ModeSocket == 0 {
		return err // a file is in the way, which bind tells
	}
	return os.Remove(path)
}
