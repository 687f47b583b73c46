package lab

import (
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offload says in what units packets cross a virtual link.
type Offload uint8

const (
	// OffloadDefault leaves a link as the kernel made it.
	OffloadDefault Offload = iota
	// OffloadWire makes packets cross the link in wire size, as they would cross
	// a cable: no segmentation offload on sending; GRO on receiving, which a
	// physical card's driver does as well.
	OffloadWire
	// OffloadFull lets super-frames through and has GRO on.
	OffloadFull
)

func (o Offload) String() string {
	switch o {
	case OffloadWire:
		return "wire"
	case OffloadFull:
		return "full"
	}
	return "default"
}

// ParseOffload reads what String writes.
func ParseOffload(s string) (Offload, error) {
	for _, o := range []Offload{OffloadDefault, OffloadWire, OffloadFull} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("offload %q is none of default, wire, full", s)
}

// SetOffload sets a link's segmentation features and GRO and checks that the
// kernel took them.
func (n *Namespace) SetOffload(link string, o Offload) error {
	if o == OffloadDefault {
		return nil
	}
	return n.Do(func() error {
		e, err := openEthtool(link)
		if err != nil {
			return fmt.Errorf("lab: %s: %w", n.Name, err)
		}
		defer e.close()
		for _, name := range e.names {
			want, ok := o.wants(name)
			if !ok {
				continue
			}
			if err := e.set(name, want); err != nil {
				return fmt.Errorf("lab: %s: %w", n.Name, err)
			}
		}
		return nil
	})
}

// wants tells what a feature, by the kernel's name for it, is to be.
func (o Offload) wants(feature string) (on, ok bool) {
	switch {
	case feature == "rx-gro":
		return true, true
	case strings.HasPrefix(feature, "tx-") && strings.HasSuffix(feature, "-segmentation"), feature == "tx-generic-segmentation":
		return o == OffloadFull, true
	}
	return false, false
}

// Features tells which of a link's offload features are on, by the kernel's names.
func (n *Namespace) Features(link string) (map[string]bool, error) {
	on := map[string]bool{}
	err := n.Do(func() error {
		e, err := openEthtool(link)
		if err != nil {
			return err
		}
		defer e.close()
		blocks, err := e.get()
		if err != nil {
			return err
		}
		for i, name := range e.names {
			on[name] = blocks[i/32].active&(1<<(i%32)) != 0
		}
		return nil
	})
	return on, err
}

// The ethtool ioctl (include/uapi/linux/ethtool.h), features only. The netlink
// library does not cover it, and the lab depends on no program but the product.
const (
	ethtoolGSTRINGS  = 0x1b
	ethtoolGSSETINFO = 0x37
	ethtoolGFEATURES = 0x3a
	ethtoolSFEATURES = 0x3b

	ethtoolStringBytes = 32 // ETH_GSTRING_LEN
	stringSetFeatures  = 4  // ETH_SS_FEATURES
	maxFeatures        = 128
	featureBlocks      = maxFeatures / 32
)

// featureBlock is struct ethtool_get_features_block.
type featureBlock struct{ available, requested, active, neverChanged uint32 }

// ifreqData is struct ifreq with a pointer as its union.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

type ethtool struct {
	fd    int
	req   ifreqData
	link  string
	names []string
}

// openEthtool opens a link of the calling thread's namespace.
func openEthtool(link string) (*ethtool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	e := &ethtool{fd: fd, link: link}
	copy(e.req.name[:unix.IFNAMSIZ-1], link)

	count := struct {
		cmd, reserved uint32
		mask          uint64
		n             uint32
	}{cmd: ethtoolGSSETINFO, mask: 1 << stringSetFeatures}
	if err := e.ioctl(unsafe.Pointer(&count), "count features"); err != nil {
		e.close()
		return nil, err
	}
	if count.n > maxFeatures {
		e.close()
		return nil, fmt.Errorf("ethtool: %s has %d features, more than this code has room for (%d)", link, count.n, maxFeatures)
	}
	strs := struct {
		cmd, set, n uint32
		data        [maxFeatures * ethtoolStringBytes]byte
	}{cmd: ethtoolGSTRINGS, set: stringSetFeatures, n: count.n}
	if err := e.ioctl(unsafe.Pointer(&strs), "name features"); err != nil {
		e.close()
		return nil, err
	}
	for i := range int(count.n) {
		e.names = append(e.names, unix.ByteSliceToString(strs.data[i*ethtoolStringBytes:(i+1)*ethtoolStringBytes]))
	}
	return e, nil
}

func (e *ethtool) close() { unix.Close(e.fd) }

func (e *ethtool) ioctl(arg unsafe.Pointer, what string) error {
	e.req.data = arg
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&e.req)))
	if errno != 0 {
		return fmt.Errorf("ethtool: %s: %s: %w", e.link, what, errno)
	}
	return nil
}

func (e *ethtool) get() ([featureBlocks]featureBlock, error) {
	g := struct {
		cmd, size uint32
		blocks    [featureBlocks]featureBlock
	}{cmd: ethtoolGFEATURES, size: featureBlocks}
	err := e.ioctl(unsafe.Pointer(&g), "read features")
	return g.blocks, err
}

// set turns one feature on or off and reads back that it is so. A feature the
// device hasn't got, or can't change, is left.
func (e *ethtool) set(name string, on bool) error {
	for i := range e.names {
		if e.names[i] != name {
			continue
		}
		bit := uint32(1) << (i % 32)
		blocks, err := e.get()
		if err != nil {
			return err
		}
		if b := blocks[i/32]; b.available&bit == 0 || b.neverChanged&bit != 0 || (b.active&bit != 0) == on {
			return nil
		}
		s := struct {
			cmd, size uint32
			blocks    [featureBlocks]struct{ valid, requested uint32 }
		}{cmd: ethtoolSFEATURES, size: uint32(len(e.names)+31) / 32}
		s.blocks[i/32].valid = bit
		if on {
			s.blocks[i/32].requested = bit
		}
		if err := e.ioctl(unsafe.Pointer(&s), "set "+name); err != nil {
			return err
		}
		if blocks, err = e.get(); err != nil {
			return err
		}
		if (blocks[i/32].active&bit != 0) != on {
			return fmt.Errorf("ethtool: %s: the kernel refuses %s=%t", e.link, name, on)
		}
	}
	return nil
}
