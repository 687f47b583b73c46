package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/config"
	"vswitch/internal/nodeapi"
)

// What lies in the state directory.
const (
	lockFile        = "lock"
	instanceFile    = "instance"
	claimFile       = "claim.json"
	snapshotFile    = "objects.json"
	journalFile     = "objects.json.journal" // snapshot.JournalOf
	attachmentsFile = "attachments.json"
	leasesFile      = "leases.json"
	udpPortFile     = "udp-port.json"
	storeDir        = "store"
	keeperSocket    = "keeper.sock"
)

// stateDir is the directory of what must survive a restart, locked while open.
type stateDir struct {
	path string
	lock *os.File
}

// KeeperSocket is where the keeper of this node's next daemon finds that of this one.
// It lies in the state directory, which is made if need be: who takes over goes on with what lies there.
func KeeperSocket(cfg config.Config) (string, error) {
	return filepath.Join(cfg.StateDir, keeperSocket), makeStateDir(cfg.StateDir)
}

// MakeDirs makes the directories that a node's processes work in. They can be
// confined to what is there alone.
func MakeDirs(cfg *config.Config) error {
	if err := makeStateDir(cfg.StateDir); err != nil {
		return err
	}
	if err := nodeapi.MakeSocketDir(cfg.SocketPath); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RuntimeDir, 0o700); err != nil {
		return fmt.Errorf("--runtime-dir %s: %w; want a directory this user can write", cfg.RuntimeDir, err)
	}
	return nil
}

func makeStateDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("--state-dir %s: %w; want a directory this user can write", path, err)
	}
	return nil
}

// openStateDir makes the directory if need be, with mode 0700, and takes its
// lock, which goes with the process however that ends.
func openStateDir(path string) (*stateDir, error) {
	f, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	return &stateDir{path: path, lock: f}, nil
}

func lockDir(path string) (*os.File, error) {
	if err := makeStateDir(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--state-dir %s: %w; want a directory this user can write", path, err)
	}
	if err := takeLock(int(f.Fd())); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("--state-dir %s: another vswitch runs on it; stop that one, or give this one another --state-dir and --socket", path)
		}
		return nil, fmt.Errorf("--state-dir %s: lock: %w", path, err)
	}
	return f, nil
}

// locked reports why another daemon would not find the directory locked; nil: it would.
func (d *stateDir) locked() error {
	there, err := os.Lstat(d.file(lockFile))
	if err != nil {
		return err
	}
	held, err := d.lock.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(there, held) {
		return fmt.Errorf("%s is another file", d.file(lockFile))
	}
	return nil
}

// relock locks the directory again, which is made anew if it has gone as well. It
// fails where another daemon was quicker.
func (d *stateDir) relock() error {
	f, err := lockDir(d.path)
	if err != nil {
		return err
	}
	_ = d.lock.Close() // of a file that nobody can open any more
	d.lock = f
	return nil
}

// A process that was killed a moment ago may hold its lock still: the kernel closes
// its files in its own time.
const (
	lockPatience = time.Second
	lockPause    = 10 * time.Millisecond
)

func takeLock(fd int) error {
	for began := time.Now(); ; time.Sleep(lockPause) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > lockPatience {
			return err
		}
	}
}

func (d *stateDir) file(name string) string { return filepath.Join(d.path, name) }

// Close gives up the lock.
func (d *stateDir) Close() error { return d.lock.Close() }

// instance is a random name for this state directory, made once. It tells two
// machines of one name apart.
func (d *stateDir) instance() (string, error) {
	text, err := os.ReadFile(d.file(instanceFile))
	if err == nil && len(strings.TrimSpace(string(text))) == 32 {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("--state-dir %s: %w", d.path, err)
	}
	var b [16]byte
	rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	if err := d.saveInstance(id); err != nil {
		return "", fmt.Errorf("--state-dir %s: %w", d.path, err)
	}
	return id, nil
}

func (d *stateDir) saveInstance(id string) error {
	return os.WriteFile(d.file(instanceFile), []byte(id+"\n"), 0o600)
}
