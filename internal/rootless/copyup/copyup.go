// Package copyup makes directories of the machine writable for root of a user
// namespace, in its own mount namespace: what is written there is seen there alone,
// and is gone with it.
//
// Root of a user namespace may not write where the machine's root alone may, an
// overlay file system included: the directories in it keep their owner, whom the
// namespace doesn't have. So a file system of the namespace's own (tmpfs) is mounted
// over a directory, and what was there is put into it:
//
//	a directory that can be written anyway    a link to it
//	any other directory                       a directory, filled in the same way
//	a small file                              a copy, which can be written
//	anything else                             a link to it
//	what can't be read                        nothing: an engine of the machine's root
//	                                          keeps its state so, and one inside has
//	                                          its own
//
// Where the directory itself can be written, as all can by the machine's root, what
// was there is read-only: nothing that is written changes it.
//
// Directories are filled three levels deep, and unless they are crowded: a start
// is to take milliseconds, whatever a machine has below /var/lib. RootlessKit's
// --copy-up links what is on the first level, so that who starts an engine removes
// the links that are in its way; here they aren't.
package copyup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// levels below a directory at which directories are filled: an engine writes
	// /etc/cni/net.d and /var/lib/cni/networks/NAME.
	levels = 3
	// crowd is how many entries a directory that is filled has at most.
	crowd = 1024
	// smallBytes is what a file has at most that is copied: locks, leases, settings.
	smallBytes = 4 << 10
	// original is where in a directory that was copied up the machine's own is.
	original = ".host"
)

// Check refuses what can't be copied up.
func Check(dirs []string) error {
	for _, d := range dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) == "/" {
			return fmt.Errorf("%s: want the absolute path of a directory below /", d)
		}
	}
	return nil
}

// Dirs copies directories up, in this process's mount namespace, which must be its
// own. A directory below one of them that isn't there is made; others that are
// absent are left so.
func Dirs(dirs []string) error {
	dirs = slices.Clone(dirs)
	slices.Sort(dirs) // what contains another goes first
	var done []string
	for _, d := range dirs {
		d = filepath.Clean(d)
		below := slices.ContainsFunc(done, func(p string) bool { return d == p || strings.HasPrefix(d, p+"/") })
		st, err := os.Stat(d)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = nil
			if below {
				err = os.MkdirAll(d, 0o755)
			}
		case err != nil:
		case !st.IsDir():
			err = errors.New("want a directory")
		case below && unix.Access(d, unix.W_OK) == nil: // with the one around it
		default:
			err = up(d, st.Mode())
			done = append(done, d)
		}
		if err != nil {
			return fmt.Errorf("copy up %s: %w", d, err)
		}
	}
	return nil
}

// up copies one directory up.
func up(dir string, mode fs.FileMode) error {
	was, err := Take(dir)
	if err != nil {
		return err
	}
	defer was.Close()
	if unix.Access(dir, unix.W_OK) == nil {
		if err := was.protect(); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%o", mode.Perm())); err != nil {
		return fmt.Errorf("mount a file system of its own: %w", err)
	}
	at := filepath.Join(dir, original)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := was.Put(at); err != nil {
		return fmt.Errorf("keep what was there: %w", err)
	}
	return fill(dir, at, original, 1)
}

// Tree is a file or directory, with what is mounted below it, as it was when it was
// taken: it can be put elsewhere once another file system hides it.
type Tree int

// Take takes what is at a path.
func Take(path string) (Tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return Tree(fd), nil
}

// protect makes it read-only.
func (t Tree) protect() error {
	err := unix.MountSetattr(int(t), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return nil
}

// Put shows it at a path, once, where something is that it hides.
func (t Tree) Put(path string) error {
	if err := unix.MoveMount(int(t), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: path, Err: err}
	}
	return nil
}

// Close ends what was not put anywhere.
func (t Tree) Close() error { return unix.Close(int(t)) }

// IsDir reports whether it is a directory.
func (t Tree) IsDir() bool {
	var st unix.Stat_t
	return unix.Fstat(int(t), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// fill puts what is in the directory from into to. By up it is reached from there.
func fill(to, from, up string, level int) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	dev := deviceOf(from)
	for _, e := range entries {
		if level == 1 && e.Name() == original { // of one who copied up, around this one
			continue
		}
		err := put(filepath.Join(to, e.Name()), filepath.Join(from, e.Name()), filepath.Join(up, e.Name()), dev, level)
		// It went meanwhile, or more than its mode keeps it from being read.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// put puts one entry, which is at from, and in its place by the relative path link.
func put(to, from, link string, dev uint64, level int) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	mounted := deviceOf(from) != dev
	switch mode := st.Mode(); {
	case mode&fs.ModeSymlink != 0:
		text, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(text, to)
	case !usable(from, mode):
		return nil
	case mode.IsDir() && !mounted && level <= levels && unix.Access(from, unix.W_OK) != nil && !crowded(from):
		if err := os.Mkdir(to, mode.Perm()|0o700); err != nil {
			return err
		}
		return fill(to, from, filepath.Join("..", link), level+1)
	case mode.IsRegular() && !mounted && st.Size() <= smallBytes:
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, mode.Perm()|0o600)
	}
	return os.Symlink(link, to)
}

// usable reports whether this process can do with a file what it is for.
func usable(path string, mode fs.FileMode) bool {
	want := uint32(unix.R_OK)
	switch {
	case mode.IsDir():
		want = unix.R_OK | unix.X_OK
	case mode&fs.ModeSocket != 0:
		want = unix.W_OK
	}
	return unix.Access(path, want) == nil
}

func crowded(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return true
	}
	defer f.Close()
	names, err := f.Readdirnames(crowd + 1)
	return err == nil && len(names) > crowd
}

// deviceOf tells file systems apart: what is mounted in a directory is on another one.
func deviceOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Dev
}
