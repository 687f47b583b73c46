package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Deleting an attachment while no daemon runs.
//
// CNI DEL has to work without the daemon, and runtimes don't call it for ever.
// So a plugin that can't reach the daemon leaves a tombstone, a small file in a
// directory beside the socket, and the daemon frees the addresses when it
// starts. Both sides keep to an order, so that no tombstone is overlooked
// whenever the daemon starts in between:
//
//	plugin: write the tombstone; try to call DelPod once more;
//	        if that worked, remove the tombstone
//	daemon: listen; then read the tombstones, free what they name, remove them;
//	        then answer AddPod
//
// Either the plugin's second call finds the daemon listening, or the daemon
// reads the directory after the tombstone was written.
//
// A plugin killed between its second call and the removal leaves a tombstone for
// something already gone. Before it adds the same attachment anew, the plugin
// therefore carries out and removes a tombstone of that key.
//
// The directory lies on /run or its like, so tombstones, as the leases they are
// about, don't outlive a boot.

// TombstoneDir is the directory of the tombstones for a daemon's socket.
func TombstoneDir(socket string) string { return socket + ".deleted" }

// WriteTombstone records that an attachment is to be deleted. Writing it again
// changes nothing.
func WriteTombstone(socket string, key AttachmentKey) error {
	dir := TombstoneDir(socket)
	// The socket's own directory may have gone with the daemon (systemd's
	// RuntimeDirectory=), its parent is there.
	if err := makeDir(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("tombstone: %w", err)
	}
	if err := makeDir(dir, 0o700); err != nil {
		return fmt.Errorf("tombstone: %w", err)
	}
	data, err := json.Marshal(tombstone(key))
	if err != nil {
		return fmt.Errorf("tombstone: %w", err)
	}
	// Written whole or not at all: a reader skips names with a leading dot.
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return fmt.Errorf("tombstone: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), tombstonePath(socket, key))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("tombstone: %w", err)
	}
	return nil
}

func makeDir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// HasTombstone reports whether there is a tombstone for an attachment.
func HasTombstone(socket string, key AttachmentKey) bool {
	_, err := os.Lstat(tombstonePath(socket, key))
	return err == nil
}

// RemoveTombstone removes an attachment's tombstone, if there is one.
func RemoveTombstone(socket string, key AttachmentKey) error {
	err := os.Remove(tombstonePath(socket, key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tombstone: %w", err)
	}
	return nil
}

// Tombstones lists the attachments to be deleted. One that can't be read does
// not hide the others: it is left out and named in the error.
func Tombstones(socket string) ([]AttachmentKey, error) {
	dir := TombstoneDir(socket)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tombstones: %w", err)
	}
	var keys []AttachmentKey
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		var t tombstone
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its plugin got through after all
		}
		if err == nil {
			err = json.Unmarshal(data, &t)
		}
		if err == nil && t.ContainerID == "" {
			err = errors.New("no container id")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("tombstone %s: %w", e.Name(), err))
			continue
		}
		keys = append(keys, AttachmentKey(t))
	}
	return keys, errors.Join(errs...)
}

// tombstone is the content of the file; its name is only a hash.
type tombstone struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	Ifname      string `json:"ifname"`
}

// tombstonePath hashes the key: container ids can be longer than a file name.
// No part of a key contains a zero byte (CNI takes none from the environment).
func tombstonePath(socket string, key AttachmentKey) string {
	h := sha256.Sum256([]byte(key.Network + "\x00" + key.ContainerID + "\x00" + key.Ifname))
	return filepath.Join(TombstoneDir(socket), hex.EncodeToString(h[:16]))
}
