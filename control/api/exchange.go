package api

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/net/http2/hpack"
)

// One request and its answer over HTTP/2 (RFC 9113), as a client that closes the connection
// afterwards. Everything happens in one goroutine: the request goes out first, in a single
// write unless it is larger than the daemon's window, then frames are read until the
// stream ends.
//
//	+-----------------------------------------------+
//	|                 Length (24)                   |
//	+---------------+---------------+---------------+
//	|   Type (8)    |   Flags (8)   |
//	+-+-------------+---------------+-------------------------------+
//	|R|                 Stream Identifier (31)                      |
//	+=+=============================================================+
//	|                   Frame Payload (0...)                      ...
//	+---------------------------------------------------------------+
const (
	frameHeaderBytes = 9 // section 4.1

	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1 // of SETTINGS and PING
	flagEndStream  = 0x1 // of DATA and HEADERS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingInitialWindow = 0x4

	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // section 3.4
	initialWindow = 1<<16 - 1                          // section 6.9.2
	maxFrameBytes = 1 << 14                            // section 4.2, unless asked for more
)

const (
	// answerWindow is what the daemon may send without waiting for us: more than its
	// longest answer, the list of a node's attachments.
	answerWindow = 64 << 20
	// ours is the stream of the one request.
	ours = 1
)

type exchange struct {
	conn io.ReadWriter
	in   *bufio.Reader
	hp   *hpack.Decoder
	answer
	block []byte // of header fields, until it is complete
	ends  bool   // the stream ends with it

	// What the daemon takes of us at the moment, on the connection and on the stream.
	connWindow, window, firstWindow int64
}

func newExchange(conn io.ReadWriter) *exchange {
	x := &exchange{
		conn: conn, in: bufio.NewReader(conn), answer: answer{headers: map[string]string{}},
		connWindow: initialWindow, window: initialWindow, firstWindow: initialWindow,
	}
	x.hp = hpack.NewDecoder(4096, func(f hpack.HeaderField) { x.headers[f.Name] = f.Value })
	return x
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// do sends a request with a body to a path and returns what came back.
func (x *exchange) do(path string, body []byte) (*answer, error) {
	out := []byte(preface)
	setting := binary.BigEndian.AppendUint32([]byte{0, settingInitialWindow}, answerWindow)
	out = appendFrame(out, frameSettings, 0, 0, setting)
	out = appendFrame(out, frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, answerWindow))
	out = appendFrame(out, frameHeaders, flagEndHeaders, ours, requestHeaders(path))
	for done := false; !done; {
		for len(body) > 0 && min(x.window, x.connWindow) > 0 {
			n := min(int64(len(body)), maxFrameBytes, x.window, x.connWindow)
			var flags byte
			if n == int64(len(body)) {
				flags = flagEndStream
			}
			out = appendFrame(out, frameData, flags, ours, body[:n])
			body = body[n:]
			x.window, x.connWindow = x.window-n, x.connWindow-n
		}
		if len(out) > 0 {
			if _, err := x.conn.Write(out); err != nil {
				return nil, err
			}
			out = nil
		}
		var err error
		if out, done, err = x.readFrame(); err != nil {
			return nil, err
		}
	}
	return &x.answer, nil
}

func requestHeaders(path string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range [...][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		// A bytes.Buffer takes everything.
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return b.Bytes()
}

// readFrame takes one frame in. It returns what is to be sent for it, and whether the
// stream has ended.
func (x *exchange) readFrame() (out []byte, done bool, err error) {
	var h [frameHeaderBytes]byte
	if _, err := io.ReadFull(x.in, h[:]); err != nil {
		return nil, false, err
	}
	length, kind, flags := int(h[0])<<16|int(h[1])<<8|int(h[2]), h[3], h[4]
	stream := binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1)
	if length > maxFrameBytes {
		return nil, false, fmt.Errorf("HTTP/2 frame of %d bytes, at most %d", length, maxFrameBytes)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(x.in, payload); err != nil {
		return nil, false, err
	}
	switch kind {
	case frameSettings:
		if flags&flagAck != 0 {
			return nil, false, nil
		}
		x.adopt(payload)
		return appendFrame(nil, frameSettings, flagAck, 0, nil), false, nil
	case framePing:
		if flags&flagAck != 0 {
			return nil, false, nil
		}
		return appendFrame(nil, framePing, flagAck, 0, payload), false, nil
	case frameWindowUpdate:
		return nil, false, x.widen(stream, payload)
	case frameGoAway:
		if length < 4 || binary.BigEndian.Uint32(payload)&(1<<31-1) < ours {
			return nil, false, errors.New("the daemon takes no more calls on this connection")
		}
		return nil, false, nil // it answers this one still
	}
	if stream != ours {
		return nil, false, nil
	}
	switch kind {
	case frameData:
		payload, err = unpad(flags, payload)
		x.body = append(x.body, payload...)
		return nil, flags&flagEndStream != 0, err
	case frameHeaders:
		if payload, err = unpad(flags, payload); err != nil {
			return nil, false, err
		}
		if flags&flagPriority != 0 {
			payload = payload[min(5, len(payload)):]
		}
		x.block, x.ends = payload, flags&flagEndStream != 0
	case frameContinuation:
		x.block = append(x.block, payload...)
	case frameRSTStream:
		return nil, false, fmt.Errorf("the daemon ended the call: HTTP/2 error %x", payload)
	default:
		return nil, false, nil // section 5.5: unknown ones are ignored
	}
	if flags&flagEndHeaders == 0 {
		return nil, false, nil
	}
	_, err = x.hp.Write(x.block)
	return nil, x.ends, errors.Join(err, x.hp.Close())
}

// adopt takes over the daemon's settings, of which one matters here.
func (x *exchange) adopt(settings []byte) {
	for ; len(settings) >= 6; settings = settings[6:] {
		if binary.BigEndian.Uint16(settings) == settingInitialWindow {
			first := int64(binary.BigEndian.Uint32(settings[2:]))
			x.window, x.firstWindow = x.window+first-x.firstWindow, first
		}
	}
}

func (x *exchange) widen(stream uint32, payload []byte) error {
	if len(payload) != 4 {
		return errMalformed
	}
	more := int64(binary.BigEndian.Uint32(payload) & (1<<31 - 1))
	switch stream {
	case 0:
		x.connWindow += more
	case ours:
		x.window += more
	}
	return nil
}

// unpad takes padding away (section 6.1).
func unpad(flags byte, payload []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return payload, nil
	}
	if len(payload) == 0 || int(payload[0]) >= len(payload) {
		return nil, errMalformed
	}
	return payload[1 : len(payload)-int(payload[0])], nil
}
