package fib

import "fmt"

// Kind says what a next hop is.
type Kind uint8

// Kinds of next hop.
const (
	None        Kind = iota // no route
	Port                    // a port of this node; Index is its id
	Peer                    // another node, through a tunnel; Index is the member's id
	VIP                     // a service address: the gateway's
	Router                  // the node's router address: the switch itself
	Node                    // an address of a node's host
	Egress                  // the world outside, through the gateway
	Unreachable             // known to lead nowhere: refused
	kinds
)

var kindNames = [kinds]string{
	None: "none", Port: "port", Peer: "peer", VIP: "vip", Router: "router",
	Node: "node", Egress: "egress", Unreachable: "unreachable",
}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// NextHop is where a route leads. A route's kind is never None, and its index
// is at most MaxIndex.
type NextHop struct {
	Kind  Kind
	Index uint32
}

func (nh NextHop) String() string { return fmt.Sprintf("%v %d", nh.Kind, nh.Index) }

// MaxIndex is the highest Index of a route. 28 bits, so that an IPv4 address, a
// kind and an index fit one 64-bit word and are read and written in one piece.
const MaxIndex = 1<<indexBits - 1

const indexBits = 28

// Kinds must fit the bits above the index.
const _ = uint(1<<(32-indexBits) - kinds)

// packed is a NextHop in one word, kind above index. Zero is no route.
type packed uint32

func pack(nh NextHop) packed {
	if nh.Kind == None || nh.Kind >= kinds || nh.Index > MaxIndex {
		panic(fmt.Sprintf("fib: next hop out of range: %v", nh))
	}
	return packed(nh.Kind)<<indexBits | packed(nh.Index)
}

func (p packed) nextHop() NextHop {
	return NextHop{Kind: Kind(p >> indexBits), Index: uint32(p & MaxIndex)}
}
