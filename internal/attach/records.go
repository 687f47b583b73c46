package attach

import (
	"errors"
	"io/fs"
	"net/netip"

	"vswitch/control/statefile"
	"vswitch/tap"
	"vswitch/vswitch/frame"
)

// Records keeps attached attachments beyond the daemon, but not beyond the boot:
// pods don't survive that either. Pending ones are not kept: their plugin is told
// by the refusal of its token.
type Records interface {
	Load() ([]Attachment, error)
	Save([]Attachment) error
}

// recordVersion counts changes that an older daemon can't read.
const recordVersion = 1

type recordFile struct {
	BootID      string   `json:"bootID"`
	Attachments []record `json:"attachments"`
}

type record struct {
	Key
	Netns    string       `json:"netns"`
	Pod      Pod          `json:"pod"`
	Addrs    []netip.Addr `json:"addrs"`
	MAC      frame.MAC    `json:"mac"`
	MTUBytes int          `json:"mtuBytes"`
	Plain    bool         `json:"plain,omitempty"`
	// Ports came later; a daemon that doesn't know them leaves them closed.
	Ports []PortMapping `json:"ports,omitempty"`
	Host  bool          `json:"host,omitempty"`
	// Features is tap.Features of the queues.
	Features uint32 `json:"features,omitempty"`
}

// File is Records in one file.
type File struct {
	Path   string
	BootID string
}

func (f *File) state() statefile.File {
	return statefile.File{Path: f.Path, Kind: "attachments", Version: recordVersion, Volatile: true}
}

// Load reads the attachments of this boot.
func (f *File) Load() ([]Attachment, error) {
	var file recordFile
	err := f.state().Read(&file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if file.BootID != f.BootID {
		return nil, nil
	}
	var all []Attachment
	for _, r := range file.Attachments {
		all = append(all, Attachment{
			Key: r.Key, Netns: r.Netns, Pod: r.Pod, Addrs: r.Addrs, MAC: r.MAC,
			MTUBytes: r.MTUBytes, Plain: r.Plain, Ports: r.Ports, Host: r.Host, Features: tap.Features(r.Features),
		})
	}
	return all, nil
}

// Save replaces the file.
func (f *File) Save(all []Attachment) error {
	file := recordFile{BootID: f.BootID, Attachments: []record{}}
	for i := range all {
		a := &all[i]
		file.Attachments = append(file.Attachments, record{
			Key: a.Key, Netns: a.Netns, Pod: a.Pod, Addrs: a.Addrs, MAC: a.MAC,
			MTUBytes: a.MTUBytes, Plain: a.Plain, Ports: a.Ports, Host: a.Host, Features: uint32(a.Features),
		})
	}
	return f.state().Write(file)
}
