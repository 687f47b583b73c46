// Package statefile keeps one value in one file so that a crash, a full disk or a
// flipped bit never yields half of it.
//
// A file is written aside, synced, renamed into place, and its directory synced:
// whoever reads sees the old value or the new. A Volatile one is not synced: it outlives its
// writer, however that ends, and not the machine's loss of power. Each carries its kind, a version and
// a checksum, and what does not check is moved aside for a person to look at and
// reported as a *DamagedError, after which there simply is no file. The package
// knows nothing of what the values mean.
//
//	{"kind":"ipam","version":1,"sha256":"9f86...","data":{...}}
package statefile

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// File names a value on disk: where, what, and in which version of its form.
// A File is used by one goroutine at a time.
type File struct {
	Path    string
	Kind    string // such as "snapshot"; a file of another kind is damage
	Version int    // of the data's form; a file of another version is damage too
	// Volatile: what it holds means nothing after the next boot, so that no write need
	// wait for the disk.
	Volatile bool
}

// DamagedError says that a file was there and is not what it should be.
type DamagedError struct {
	Path  string
	Kept  string // where it was moved to; empty if that failed
	Cause error
}

func (e *DamagedError) Error() string {
	if e.Kept == "" {
		return fmt.Sprintf("%s is damaged: %v", e.Path, e.Cause)
	}
	return fmt.Sprintf("%s is damaged and kept as %s: %v", e.Path, e.Kept, e.Cause)
}

func (e *DamagedError) Unwrap() error { return e.Cause }

type envelope struct {
	Kind    string          `json:"kind"`
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"` // of data, as it stands here
	Data    json.RawMessage `json:"data"`
}

// Write replaces the file by v as JSON. After an error the old value stands.
func (f File) Write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("statefile: encode %s: %w", f.Kind, err)
	}
	_, err = f.WriteFrom(func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	return err
}

// bufferBytes gathers what is written in small pieces.
const bufferBytes = 64 << 10

// WriteFrom replaces the file by what data writes, which must be one JSON value
// without space around it, and returns its checksum (SHA-256, in hexadecimal digits). It
// is never in memory as a whole. After an error, which may be data's, the old value stands.
func (f File) WriteFrom(data func(io.Writer) error) (sum string, err error) {
	kind, err := json.Marshal(f.Kind)
	if err != nil {
		return "", fmt.Errorf("statefile: encode %s: %w", f.Kind, err)
	}
	head := fmt.Sprintf(`{"kind":%s,"version":%d,"sha256":"`, kind, f.Version)
	err = replace(f.Path, 0o600, !f.Volatile, func(out *os.File) error {
		// The checksum stands before what it is of, and is known after.
		room := strings.Repeat("0", hex.EncodedLen(sha256.Size))
		if _, err := out.WriteString(head + room + `","data":`); err != nil {
			return err
		}
		hash := sha256.New()
		w := bufio.NewWriterSize(io.MultiWriter(out, hash), bufferBytes)
		if err := data(w); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if _, err := out.WriteString("}\n"); err != nil {
			return err
		}
		sum = hex.EncodeToString(hash.Sum(nil))
		_, err := out.WriteAt([]byte(sum), int64(len(head)))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("statefile: write %s: %w", f.Path, err)
	}
	return sum, nil
}

// Read fills v from the file. errors.Is fs.ErrNotExist: there is none. A
// *DamagedError: there was one, and now there is none.
func (f File) Read(v any) error {
	_, err := f.ReadSum(v)
	return err
}

// ReadSum is Read, and returns the value's checksum as WriteFrom did.
func (f File) ReadSum(v any) (sum string, err error) {
	text, err := os.ReadFile(f.Path)
	if err != nil {
		return "", fmt.Errorf("statefile: %w", err)
	}
	if sum, err = f.decode(text, v); err != nil {
		return "", f.SetAside(err)
	}
	return sum, nil
}

// SetAside moves the file away as one that is damaged.
func (f File) SetAside(cause error) *DamagedError {
	return &DamagedError{Path: f.Path, Kept: setAside(f.Path), Cause: cause}
}

func (f File) decode(text []byte, v any) (sum string, err error) {
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return "", err
	}
	switch {
	case e.Kind != f.Kind:
		return "", fmt.Errorf("it holds %q, want %q", e.Kind, f.Kind)
	case e.SHA256 != checksum(e.Data):
		return "", errors.New("its checksum does not match")
	case e.Version != f.Version:
		return "", fmt.Errorf("it has version %d, want %d", e.Version, f.Version)
	}
	return e.SHA256, json.Unmarshal(e.Data, v)
}

// Remove deletes the file; that there is none is no error.
func (f File) Remove() error {
	if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("statefile: %w", err)
	}
	return nil
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Replace has a file written beside path, as path.new, and renames it there: a
// reader of path sees all of the old one or all of the new. mode is exact, whatever
// the umask. The name aside is fixed, so that a crash leaves one such file at most; of
// two processes that write one path at a time, one waits.
func Replace(path string, mode fs.FileMode, write func(*os.File) error) error {
	return replace(path, mode, true, write)
}

func replace(path string, mode fs.FileMode, sync bool, write func(*os.File) error) (err error) {
	aside := path + ".new"
	claim, err := lockAside(aside)
	if err != nil {
		return err
	}
	defer claim.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(aside)
		}
	}()
	if err = fill(aside, mode, sync, write); err != nil {
		return err
	}
	if err = os.Rename(aside, path); err != nil || !sync {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// lockAside makes the file aside, if it isn't there, for its owner alone, and locks
// it. It is open for reading only: a program that somebody has open for writing when
// it gets its name could not be run.
func lockAside(aside string) (*os.File, error) {
	for {
		f, err := os.OpenFile(aside, os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		ours, err := lock(f, aside)
		if ours {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lock waits for a lock on the file aside, and reports whether it is that file still:
// who had the lock before may have renamed or removed it.
func lock(f *os.File, aside string) (ours bool, err error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return false, &os.PathError{Op: "lock", Path: aside, Err: err}
		}
	}
	there, err := os.Lstat(aside)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	held, err := f.Stat()
	return err == nil && os.SameFile(held, there), err
}

// fill has the file aside written, and safe on the disk if sync says so.
func fill(aside string, mode fs.FileMode, sync bool, write func(*os.File) error) error {
	out, err := os.OpenFile(aside, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if err = write(out); err == nil {
		err = out.Chmod(mode)
	}
	if err == nil && sync {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// setAside moves a damaged file to the first free of path.damaged, .damaged-1 and
// so on to .damaged-9, the last of which is overwritten.
func setAside(path string) string {
	kept := path + ".damaged"
	for i := 1; i <= 9; i++ {
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			break
		}
		kept = path + ".damaged-" + strconv.Itoa(i)
	}
	if err := os.Rename(path, kept); err != nil {
		return ""
	}
	return kept
}
