package api

import (
	"bytes"
	"net"
	"testing"
)

// said is a connection on which the other side says the same whatever it hears.
type said struct {
	net.Conn
	*bytes.Reader
}

func (s said) Read(b []byte) (int, error)  { return s.Reader.Read(b) }
func (s said) Write(b []byte) (int, error) { return len(b), nil }

// Whatever answers, the call comes to an end.
func FuzzExchange(f *testing.F) {
	settings := appendFrame(nil, frameSettings, 0, 0, []byte{0, settingInitialWindow, 0, 0, 0, 1})
	headers := appendFrame(settings, frameHeaders, flagEndHeaders|flagEndStream, ours, requestHeaders("/x"))
	f.Add(headers)
	f.Add(appendFrame(settings, frameData, flagEndStream|flagPadded, ours, []byte{1, 2, 3}))
	f.Add(appendFrame(settings, frameGoAway, 0, 0, make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := newExchange(said{Reader: bytes.NewReader(b)}).do("/vswitch.v1.Node/Status", make([]byte, prefixBytes))
		if (a == nil) == (err == nil) {
			t.Errorf("an answer %v and %v", a, err)
		}
		if a != nil && a.failure() == nil {
			_ = a.read(&StatusReply{}) // it may well be malformed
		}
	})
}
