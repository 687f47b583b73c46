package frame

import (
	"bytes"
	"testing"
)

func TestVNetLayout(t *testing.T) {
	// The offsets of struct virtio_net_hdr, little endian.
	raw := []byte{0x01, 0x81, 0x36, 0x00, 0xa8, 0x05, 0x22, 0x00, 0x10, 0x00}
	want := VNet{
		Flags: NeedsCsum, GSOType: GSOTCPv4 | GSOECN,
		HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16,
	}
	var v VNet
	v.Decode(raw)
	if v != want {
		t.Errorf("decoded %+v, want %+v", v, want)
	}
	if !v.IsGSO() || v.GSOType.Kind() != GSOTCPv4 {
		t.Errorf("kind %d, GSO %v", v.GSOType.Kind(), v.IsGSO())
	}
	got := make([]byte, VNetHeaderBytes)
	v.Encode(got)
	if !bytes.Equal(got, raw) {
		t.Errorf("encoded % x, want % x", got, raw)
	}
	if ecn := (VNet{GSOType: GSOECN}); ecn.IsGSO() {
		t.Error("the ECN bit alone counts as segmentation")
	}
}

func FuzzVNet(f *testing.F) {
	f.Add(make([]byte, VNetHeaderBytes))
	f.Add([]byte{0x01, 0x81, 0x36, 0x00, 0xa8, 0x05, 0x22, 0x00, 0x10, 0x00, 0xff})
	f.Add(bytes.Repeat([]byte{0xff}, VNetHeaderBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < VNetHeaderBytes {
			return
		}
		var v VNet
		v.Decode(b)
		out := make([]byte, VNetHeaderBytes+1)
		out[VNetHeaderBytes] = 0xa5
		v.Encode(out)
		if !bytes.Equal(out[:VNetHeaderBytes], b[:VNetHeaderBytes]) {
			t.Errorf("% x decodes to %+v, which encodes to % x", b[:VNetHeaderBytes], v, out)
		}
		if out[VNetHeaderBytes] != 0xa5 {
			t.Error("Encode wrote beyond the header")
		}
	})
}
