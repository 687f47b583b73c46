package bench

import (
	"bytes"
	"fmt"
	"math"
	"strings"
)

// svg is a drawing written by hand: text, lines and boxes, with classes for all
// that is colour. The palette follows the reader's preference for light or dark,
// also where the file is shown as an image; the ground stays transparent.
type svg struct {
	b             bytes.Buffer
	width, height float64
}

const svgStyle = `<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.note, .tick { fill: #59636e; font-size: 11px }
.num { font-variant-numeric: tabular-nums }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.one { stroke: #59636e; stroke-width: 1.5 }
.met { fill: #1a7f64 } .missed { fill: #c4621a } .open { fill: #5b7fb4 }
.spread { stroke: #1f2328; stroke-width: 1.5 }
.goal { stroke: #1f2328; stroke-width: 2; stroke-dasharray: 3 2 }
.a { stroke: #0969da; fill: none; stroke-width: 2.5 } .afill { fill: #0969da } .aband { fill: #0969da; opacity: .15 }
.b { stroke: #c4621a; fill: none; stroke-width: 2.5 } .bfill { fill: #c4621a } .bband { fill: #c4621a; opacity: .15 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note, .tick { fill: #9198a1 }
.grid { stroke: #3d444d } .one { stroke: #9198a1 }
.met { fill: #3fb68b } .missed { fill: #e08a3c } .open { fill: #7aa2dd }
.spread, .goal { stroke: #e6edf3 }
.a { stroke: #58a6ff } .afill, .aband { fill: #58a6ff } .b { stroke: #e08a3c } .bfill, .bband { fill: #e08a3c }
.aband, .bband { opacity: .22 }
}
</style>
`

var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// anchor of a text: where its x is.
type anchor string

const (
	left   anchor = "start"
	middle anchor = "middle"
	right  anchor = "end"
)

func (s *svg) text(x, y float64, class string, a anchor, text string) {
	fmt.Fprintf(&s.b, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class, a, escape.Replace(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(&s.b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2, class)
}

// box from x1 to x2, in whichever order.
func (s *svg) box(x1, x2, y, height float64, class string) {
	fmt.Fprintf(&s.b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"%s\"/>\n",
		min(x1, x2), y, math.Abs(x2-x1), height, class)
}

func (s *svg) dot(x, y float64, class string) {
	fmt.Fprintf(&s.b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" class=\"%s\"/>\n", x, y, class)
}

// point of a shape.
type point struct{ x, y float64 }

// shape is an open line, or an area.
func (s *svg) shape(element, class string, points []point) {
	var at []string
	for _, p := range points {
		at = append(at, fmt.Sprintf("%.1f,%.1f", p.x, p.y))
	}
	fmt.Fprintf(&s.b, "<%s points=\"%s\" class=\"%s\"/>\n", element, strings.Join(at, " "), class)
}

// bytes is the whole file. title is for those who don't see it.
func (s *svg) bytes(title string) []byte {
	head := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" role=\"img\">\n<title>%s</title>\n%s",
		s.width, s.height, s.width, s.height, escape.Replace(title), svgStyle)
	return append(append([]byte(head), s.b.Bytes()...), "</svg>\n"...)
}

// logScale maps values to coordinates, each decade as long as the other.
type logScale struct{ low, high, from, to float64 }

func (l logScale) at(v float64) float64 {
	v = min(max(v, l.low), l.high)
	return l.from + (l.to-l.from)*math.Log(v/l.low)/math.Log(l.high/l.low)
}

// newLogScale holds all values, and ends on a 1, 2 or 5 of a decade on either side.
func newLogScale(values []float64, from, to float64) logScale {
	low, high := math.Inf(1), 0.0
	for _, v := range values {
		if v > 0 {
			low, high = min(low, v), max(high, v)
		}
	}
	if high == 0 {
		low, high = 1, 1
	}
	s := logScale{from: from, to: to}
	decade := math.Pow(10, math.Floor(math.Log10(low)))
	for _, m := range []float64{1, 2, 5} {
		if m*decade <= low*(1+1e-9) {
			s.low = m * decade
		}
	}
	decade = math.Pow(10, math.Floor(math.Log10(high)))
	for _, m := range []float64{10, 5, 2, 1} {
		if m*decade >= high*(1-1e-9) {
			s.high = m * decade
		}
	}
	if s.high <= s.low {
		s.high = s.low * 2
	}
	return s
}

// ticks are the 1, 2 and 5 of each decade within the scale.
func (l logScale) ticks() []float64 {
	var t []float64
	for decade := math.Pow(10, math.Floor(math.Log10(l.low))); decade <= l.high; decade *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if v := m * decade; v >= l.low*(1-1e-9) && v <= l.high*(1+1e-9) {
				t = append(t, v)
			}
		}
	}
	return t
}
