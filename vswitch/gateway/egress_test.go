package gateway

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"vswitch/vswitch/gateway/gatewaytest"
)

func TestPodReachesHostOverTCP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		pod := n.Pod(pod4.String(), pod6.String())
		c, err := pod.DialTCP(soon(t), hostServer(t, fam, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{1}).Read(sent)
		go func() {
			c.Write(sent)
			c.CloseWrite()
		}()
		h := sha256.New()
		begin := time.Now()
		if got, err := io.Copy(h, c); err != nil || got != int64(len(sent)) {
			t.Fatalf("%d bytes came back, %v; want %d", got, err, len(sent))
		}
		t.Logf("%.0f Mb/s there and back", float64(len(sent))*8/time.Since(begin).Seconds()/1e6)
		if want := sha256.Sum256(sent); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Fatal("other bytes came back than were sent")
		}
	})
}

var _ = gatewaytest.Refused
