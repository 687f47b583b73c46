// Package pcapng writes capture files in the pcapng format
// (draft-ietf-opsawg-pcapng): one section, Ethernet interfaces that may be
// announced at any time, packets with direction and comment, and at the end how
// many were lost.
//
// It writes only, and only what a capture of this switch needs; a library for
// all of the format would cost more code than this is. Nothing is kept back: each
// packet is one Write, so that a reader at the other end of a pipe sees it at once.
package pcapng

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Block types (sections 4.1 to 4.6 of the draft).
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
)

// Option codes: of every block, then of each kind.
const (
	optEnd     = 0
	optComment = 1

	sectionApplication = 4

	interfaceName        = 2
	interfaceDescription = 3
	interfaceResolution  = 9

	packetFlags = 2

	statisticsLost = 5 // isb_ifdrop
)

const (
	byteOrderMagic   = 0x1a2b3c4d
	linkTypeEthernet = 1
	nanoseconds      = 9 // resolution: 10^-9 s
	lengthUnknown    = ^uint64(0)
)

// Direction is which way a packet crossed its interface.
type Direction uint32

// Directions, as the lowest bits of epb_flags have them.
const (
	Unknown  Direction = 0
	Inbound  Direction = 1
	Outbound Direction = 2
)

// Interface describes one that packets are of.
type Interface struct {
	Name, Description string
	SnapBytes         uint32 // at most so much of a packet is kept; 0: all
}

// Packet is one captured packet.
type Packet struct {
	Interface uint32 // in the order of AddInterface, from 0
	UnixNano  uint64
	Data      []byte // what was kept of it
	Bytes     uint32 // how long it was
	Direction Direction
	Comment   string // for the reader; empty: none
}

// Writer writes one section. Not safe for concurrent use.
type Writer struct {
	w          io.Writer
	block      []byte
	interfaces uint32
}

// NewWriter begins a section; application names the program that writes it.
func NewWriter(w io.Writer, application string) (*Writer, error) {
	n := &Writer{w: w}
	n.begin(blockSection)
	n.u32(byteOrderMagic)
	n.u32(1) // version 1.0, in two halves
	n.u64(lengthUnknown)
	n.text(sectionApplication, application)
	return n, n.end()
}

// AddInterface announces the next interface and returns its number.
func (w *Writer) AddInterface(i Interface) (uint32, error) {
	w.begin(blockInterface)
	w.u32(linkTypeEthernet)
	w.u32(i.SnapBytes)
	w.text(interfaceName, i.Name)
	w.text(interfaceDescription, i.Description)
	w.option(interfaceResolution, []byte{nanoseconds})
	if err := w.end(); err != nil {
		return 0, err
	}
	w.interfaces++
	return w.interfaces - 1, nil
}

// WritePacket adds a packet. Its interface must have been announced.
func (w *Writer) WritePacket(p *Packet) error {
	if p.Interface >= w.interfaces {
		return fmt.Errorf("pcapng: packet of interface %d, of %d announced", p.Interface, w.interfaces)
	}
	w.begin(blockPacket)
	w.u32(p.Interface)
	w.time(p.UnixNano)
	w.u32(uint32(len(p.Data)))
	w.u32(p.Bytes)
	w.padded(p.Data)
	if p.Direction != Unknown {
		w.option(packetFlags, binary.LittleEndian.AppendUint32(nil, uint32(p.Direction)))
	}
	w.text(optComment, p.Comment)
	return w.end()
}

// WriteLost says at the end of a capture how many packets are missing from it. They
// can't be told apart by interface, so they stand at the first.
func (w *Writer) WriteLost(unixNano, lost uint64) error {
	if w.interfaces == 0 {
		return nil
	}
	w.begin(blockStatistics)
	w.u32(0)
	w.time(unixNano)
	w.option(statisticsLost, binary.LittleEndian.AppendUint64(nil, lost))
	return w.end()
}

// A block is its type, its length, its body in 32-bit words and its length again.

func (w *Writer) begin(kind uint32) {
	w.block = w.block[:0]
	w.u32(kind)
	w.u32(0) // the length, once known
}

func (w *Writer) end() error {
	w.u32(optEnd) // harmless in a block without options
	length := uint32(len(w.block) + 4)
	w.u32(length)
	binary.LittleEndian.PutUint32(w.block[4:], length)
	if _, err := w.w.Write(w.block); err != nil {
		return fmt.Errorf("pcapng: %w", err)
	}
	return nil
}

func (w *Writer) u32(v uint32) { w.block = binary.LittleEndian.AppendUint32(w.block, v) }
func (w *Writer) u64(v uint64) { w.block = binary.LittleEndian.AppendUint64(w.block, v) }

// time is in two halves, the high one first whatever the byte order.
func (w *Writer) time(unixNano uint64) {
	w.u32(uint32(unixNano >> 32))
	w.u32(uint32(unixNano))
}

func (w *Writer) padded(b []byte) {
	w.block = append(w.block, b...)
	for len(w.block)%4 != 0 {
		w.block = append(w.block, 0)
	}
}

func (w *Writer) option(code uint16, value []byte) {
	w.block = binary.LittleEndian.AppendUint16(w.block, code)
	w.block = binary.LittleEndian.AppendUint16(w.block, uint16(len(value)))
	w.padded(value)
}

// text adds an option that is text, cut to what its length field can say.
func (w *Writer) text(code uint16, s string) {
	if s != "" {
		w.option(code, []byte(s[:min(len(s), 1<<16-1)]))
	}
}
