package tap

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Plain devices go through water, which knows multi-queue, persistence and owner
// but neither IFF_VNET_HDR nor IFF_TUN_EXCL. Two of its habits matter here: each
// opening sets persistence to what its configuration says, so that attaching
// must ask for it again, and its descriptors are not close-on-exec and sit in an
// os.File, so they are duplicated and the original closed.

func (d *Device) openPlain(c *Config, flags uint16) error {
	wc := water.Config{
		DeviceType: water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{
			Name:       c.Name,
			Persist:    c.Persistent,
			MultiQueue: flags&unix.IFF_MULTI_QUEUE != 0,
			Permissions: &water.DevicePermissions{
				Owner: uint(os.Geteuid()),
				Group: uint(os.Getegid()),
			},
		},
	}
	for i := range c.Queues {
		fd, err := openWater(wc)
		if err != nil {
			return fmt.Errorf("open queue %d: %w", i, err)
		}
		d.FDs = append(d.FDs, fd)
	}
	return nil
}

func openWater(wc water.Config) (int, error) {
	dev, err := water.New(wc)
	if err != nil {
		return -1, err
	}
	defer dev.Close()
	// File.Fd would turn the descriptor, and with it every duplicate, blocking.
	conn, ok := dev.ReadWriteCloser.(syscall.Conn)
	if !ok {
		return -1, errors.New("water gave no descriptor")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup := -1
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return dup, nil
}
